// classify: the classes that imagenet counts, as names, JSON and a page.
#include "data/image/labels.h"
#include "eval/page.h"
#include "tests/cli.h"

using namespace bcq;
using namespace bcq::cli;

namespace {

json classify(const std::string& options) {
  const Result r = run("classify " + options + " --json -");
  CAPTURE(options);
  REQUIRE_MESSAGE(r.code == 0, r.err);
  return parse_json(r.out, "stdout");
}

}  // namespace

TEST_CASE("classify: as many pictures are right as imagenet counts, in float and saved, simulated and in integers") {
  const Folder folder;
  const std::string images = folder / "images", saved = folder / "saved";
  for (const auto& entry : fs::directory_iterator(kMini + "/images/val")) {
    const std::string name = entry.path().filename().string();
    fs::create_directories(images + "/" + name);
    int n = 0;
    for (const auto& file : fs::directory_iterator(entry.path()))
      if (++n <= 4) fs::copy(file.path(), images + "/" + name);
  }
  const Result made = run("imagenet --model data/mini/vit --data " + images +
                          " --calib-data data/mini/images/calib --calib-images 2 --method repq-vit --wbits 3 --abits 4"
                          " --save " +
                          saved);
  REQUIRE_MESSAGE(made.code == 0, made.err);
  for (const std::string model : {"data/mini/vit", saved.c_str()})
    for (const std::string integer : {"", " --integer"}) {
      if (!integer.empty() && model != saved) continue;
      CAPTURE(model + integer);
      const json all = classify("--model " + model + integer + " " + images);
      int right = 0;
      for (const json& record : all["images"]) {
        const json& best = record["results"][0]["classes"];
        right += contains(record["image"], "/" + best[0]["name"].get<std::string>() + "/");
        REQUIRE(best.size() == 5);
        double sum = 0;
        for (size_t k = 0; k < 5; ++k) {
          sum += best[k]["probability"].get<double>();
          CHECK((k == 0 || best[k]["probability"] <= best[k - 1]["probability"]));
        }
        CHECK(sum <= 1 + 1e-9);
        CHECK(sum > 0.5);
      }
      CHECK(all["images"].size() == 40);
      const Result counted = run("imagenet --model " + model + " --data " + images + " --json -" +
                                 (integer.empty() ? "" : " --runtime integer"));
      CHECK(parse_json(counted.out, "stdout")["top1"].get<double>() == doctest::Approx(100.0 * right / 40));
    }
}

TEST_CASE("classify: a page with the picture, and both models' classes beside each other") {
  const Folder folder;
  const std::string picture = kMini + "/images/val/9_ankle_boot/00000.png", page = folder / "page.html";
  const json all = classify("--model data/mini/vit --beside data/mini/deit --top 2 --html " + page + " " + picture);
  const json& results = all["images"][0]["results"];
  REQUIRE(results.size() == 2);
  CHECK(results[0]["classes"][0]["name"] == "9_ankle_boot");
  CHECK(results[0]["classes"].size() == 2);
  const std::string html = read_file(page);
  CHECK(contains(html, image_uri(read_file(picture))));
  CHECK(contains(html, "9_ankle_boot"));
  CHECK(!contains(html, "http"));  // nothing is fetched
  CHECK(contains(run("classify --model data/mini/vit - < " + picture).out, "9_ankle_boot"));

  CHECK(image_uri("GIF8").ends_with("data:image/gif;base64,R0lGOA=="));  // RFC 4648
  CHECK(image_uri("BM\xfb").ends_with("bmp;base64,Qk37"));
  CHECK(image_uri("\x89PNG\x0a").ends_with("png;base64,iVBORwo="));
  CHECK(html_text("<a href=\"x\">&") == "&lt;a href=&quot;x&quot;&gt;&amp;");
}

TEST_CASE("classify: what it cannot do it says") {
  const Folder folder;
  const std::string picture = kMini + "/images/val/9_ankle_boot/00000.png", broken = folder / "broken.png";
  write_file(broken, read_file(picture).substr(0, 60));
  check_failure("classify --model data/mini/vit", 2, {"no pictures"});
  check_failure("classify --model data/mini/opt " + picture, 2, {"language model"});
  check_failure("classify --model data/mini/vit --integer " + picture, 2, {"--integer", "saved quantized"});
  check_failure("classify --model data/mini/vit " + broken, 3, {"broken.png"});
  check_failure("classify --model data/mini/vit " + folder / "none.png", 3, {"none.png"});
  check_failure("classify --model data/mini/vit --html /nowhere/page.html " + picture, 2, {"/nowhere"});
  const Result some = run("classify --model data/mini/vit " + broken + " " + picture);
  CHECK(some.code == 4);
  CHECK(contains(some.out, "9_ankle_boot"));
  CHECK(contains(some.err, "1 of 2 pictures"));
}

TEST_CASE("labels: the classes of ImageNet-1k have names") {
  CHECK(imagenet_name(0) == "tench");
  CHECK(imagenet_name(134) == "crane, bird");
  CHECK(imagenet_name(207) == "golden retriever");
  CHECK(imagenet_name(517) == "crane, machine");
  CHECK(imagenet_name(999) == "toilet tissue");
  CHECK_THROWS_AS(imagenet_name(1000), Error);
}
