// Quantized predictions against the float network's: agreement, divergence, signal to noise.
#include "eval/vision.h"
#include "quant/ptq4vit.h"
#include "tests/cli.h"
#include "tests/model_fixtures.h"

using namespace bcq;
using namespace bcq::test;

namespace {

// The measures as they are defined, image by image.
Paired plain(const Tensor& f, const Tensor& q) {
  const int64_t n = f.dim(0), C = f.dim(1);
  std::vector<double> kl;
  double same = 0, signal = 0, noise = 0, variance = 0;
  for (int64_t b = 0; b < n; ++b) {
    long double zf = 0, zq = 0, d = 0;
    for (int64_t c = 0; c < C; ++c)
      zf += std::exp((long double)f[b * C + c]), zq += std::exp((long double)q[b * C + c]);
    int64_t of_f = 0, of_q = 0;
    for (int64_t c = 0; c < C; ++c) {
      const int64_t i = b * C + c;
      d += std::exp((long double)f[i]) / zf *
           std::log(std::exp((long double)f[i]) / zf * zq / std::exp((long double)q[i]));
      if (f[i] > f[b * C + of_f]) of_f = c;
      if (q[i] > q[b * C + of_q]) of_q = c;
      signal += double(f[i]) * f[i];
      noise += (double(f[i]) - q[i]) * (double(f[i]) - q[i]);
    }
    kl.push_back(double(d));
    same += of_f == of_q;
  }
  double mean = 0;
  for (const double d : kl) mean += d / double(n);
  for (const double d : kl) variance += (d - mean) * (d - mean) / double(n);
  const double p = same / double(n);
  return {100 * p,
          100 * std::sqrt(p * (1 - p) / double(n)),
          mean,
          std::sqrt(variance / double(n)),
          10 * std::log10(signal / noise),
          noise / double(f.size())};
}

Paired measured(const Tensor& f, const Tensor& q) {
  PairedSums sums;
  for (int64_t b = 0; b < f.dim(0); ++b) sums.add(f.slice(b, b + 1).data, q.slice(b, b + 1).data, f.dim(1));
  return sums.result();
}

}  // namespace

TEST_CASE("paired: the measures are those of a plain computation") {
  for (const double size : {0.01, 1.0, 8.0}) {
    CAPTURE(size);
    const Tensor f = random({40, 9}, 1, 5), q = add(nullptr, f, random({40, 9}, 2, size));
    const Paired got = measured(f, q), want = plain(f, q);
    CHECK(got.agreement == doctest::Approx(want.agreement));
    CHECK(got.agreement_se == doctest::Approx(want.agreement_se));
    CHECK(got.kl == doctest::Approx(want.kl).epsilon(1e-6));
    CHECK(got.kl_se == doctest::Approx(want.kl_se).epsilon(1e-6));
    CHECK(got.sqnr_db == doctest::Approx(want.sqnr_db));
    CHECK(got.logit_mse == doctest::Approx(want.logit_mse));
    CHECK(got.kl > 0);
  }
  // A shift of all logits changes no prediction; large ones overflow nothing; of equal ones the first counts.
  const Tensor f = random({6, 5}, 3, 1000);
  Tensor shifted = f.clone();
  for (int64_t i = 0; i < f.size(); ++i) shifted[i] += 256;
  CHECK(measured(f, shifted).kl == doctest::Approx(0).epsilon(1e-4));
  CHECK(measured(f, shifted).agreement == 100);
  CHECK(measured(Tensor({1, 2}, {1, 1}), Tensor({1, 2}, {2, 1})).agreement == 100);
  CHECK(measured(Tensor({1, 2}, {1, 1}), Tensor({1, 2}, {1, 2})).agreement == 0);
  const Paired same = measured(f, f);
  CHECK(same.kl == 0);
  CHECK(same.kl_se == 0);
  CHECK(same.agreement == 100);
  CHECK(to_json(same)["sqnr_db"].is_null());
}

TEST_CASE("cli: --paired adds measures to the record and changes nothing else, whatever the batch size") {
  const cli::Folder folder;
  const std::string command =
      "imagenet --model data/mini/vit --data data/mini/images/val --limit 24 --calib-data data/mini/images/calib "
      "--calib-images 2 --method base-ptq --wbits 4 --abits 4 --json ";
  REQUIRE(cli::run(command + folder / "a.json").code == 0);
  const cli::Result r = cli::run(command + folder / "b.json --paired --batch-size 5");
  REQUIRE(r.code == 0);
  const json plain = read_json(folder / "a.json"), paired = read_json(folder / "b.json");
  CHECK(!plain.contains("paired"));
  CHECK(plain["outputs_hash"] == paired["outputs_hash"]);
  CHECK(paired["paired"]["kl"].get<double>() > 0);
  CHECK(paired["paired"]["agreement"].get<double>() <= 100);
  CHECK(cli::contains(r.out, "KL "));
  REQUIRE(cli::run(command + folder / "c.json --paired --batch-size 24 --threads 1").code == 0);
  CHECK(read_json(folder / "c.json")["paired"] == paired["paired"]);
  cli::check_failure("imagenet --model data/mini/vit --data data/mini/images/val --paired", 2, {"--paired"});
}

TEST_CASE("paired: the float network is the one that was loaded, whatever ran before and was folded since") {
  const cli::Folder folder;
  // The table measures the float network first, imagenet quantizes at once.
  REQUIRE(cli::run("table --only '^4-repq-vit-none$' --limit 12 --paired --out " + (folder / "cells") + " --json " +
                   (folder / "table.json"))
              .code == 0);
  REQUIRE(cli::run(cli::kVit +
                   "--calib-data data/mini/images/calib --limit 12 --paired --method repq-vit --wbits 4 --abits 4 "
                   "--json " +
                   (folder / "one.json"))
              .code == 0);
  const json table = read_json(folder / "table.json");
  json kept;
  for (const json& row : table["rows"])
    if (row["model"] == "vit" && row["method"] == "RepQ-ViT") kept = row["record"];
  REQUIRE(kept.is_object());
  const json one = read_json(folder / "one.json");
  CHECK(kept["outputs_hash"] == one["outputs_hash"]);
  CHECK(kept["paired"] == one["paired"]);
}
