// Images, archives of them, files of labels, and the cache of decoded ones.
#include <filesystem>

#include "data/image/cache.h"
#include "data/image/image.h"
#include "data/image/image_folder.h"
#include "data/image/tar.h"
#include "engine/core/tensor.h"
#include "tests/fuzz/fuzz.h"

namespace bcq::fuzz {
namespace {

namespace fs = std::filesystem;
const std::string kImages = "tests/fixtures/image/";

void run_image(const std::string& input) {
  refused_or_read([&] { decode_image(input, "input"); });
}

std::vector<std::string> image_seeds() {
  std::vector<std::string> seeds;
  for (const auto& entry : fs::directory_iterator(kImages)) {
    const std::string name = entry.path().filename().string();
    if (name.rfind("decoded", 0) != 0 && name.rfind("resized", 0) != 0 && name != "image.json")
      seeds.push_back(read_file(entry.path().string()));
  }
  seeds.push_back("BM" + std::string(8, '\0') + std::string("\66\0\0\0\50\0\0\0\2\0\0\0\1\0\0\0\1\0\30\0", 20) +
                  std::string(24, '\0') + std::string("\1\2\3\4\5\6\0\0", 8));
  seeds.push_back("GIF89a" + std::string("\2\0\2\0\x81\1\0", 7) + "\1\2\3\4\5\6\7\10\11\1\2\3" +
                  std::string(",\0\0\0\0\2\0\2\0\0", 10) + std::string("\x02\x03\x44\x04\x05\x00", 6) + ";");
  return seeds;
}

std::string tar_member(const std::string& name, const std::string& bytes, char type = '0') {
  std::string h(512, '\0');
  h.replace(0, name.size(), name);
  h.replace(124, 12,
            format("%011d",
                   [&] {
                     int64_t octal = 0, scale = 1;
                     for (size_t n = bytes.size(); n > 0; n /= 8, scale *= 10)
                       octal += static_cast<int64_t>(n % 8) * scale;
                     return octal;
                   }()) +
                std::string(1, '\0'));
  h[156] = type;
  h.replace(257, 8, std::string("ustar\00000", 8));
  return h + bytes + std::string((512 - bytes.size() % 512) % 512, '\0');
}

// The checksum of every header, as it must be.
void mend(std::string& tar) {
  for (size_t at = 0; at + 512 <= tar.size(); at += 512) {
    if (tar.compare(at + 257, 5, "ustar") != 0) continue;
    tar.replace(at + 148, 8, "        ");
    unsigned sum = 0;
    for (size_t i = 0; i < 512; ++i) sum += static_cast<unsigned char>(tar[at + i]);
    char text[9];
    std::snprintf(text, sizeof text, "%06o", sum);
    tar.replace(at + 148, 8, std::string(text, 6) + std::string("\0 ", 2));
  }
}

void run_tar(const std::string& whole) {
  std::string input = whole;
  if (choice(input, 2) == 1) mend(input);
  const std::string path = put("a.tar", input);
  refused_or_read([&] {
    for (const TarMember& m : list_tar(path))
      if (m.type == '0') read_range(path, m.offset, std::min<uint64_t>(m.size, 100));
  });
  refused_or_read([&] { list_images(path, ModelClasses(2, {"a", "b"})); });
}

std::vector<std::string> tar_seeds() {
  const std::string end(1024, '\0'), image = read_file(kImages + "row.png");
  const std::string flat = tar_member("a/x.png", image) + tar_member("b/", "", '5') + tar_member("b/y.jpg", "z");
  const std::string pax = tar_member("pax", "16 path=b/y.png\n13 size=0003\n", 'x') + tar_member("short", "abc");
  const std::string gnu =
      tar_member("././@LongLink", "a/" + std::string(120, 'n') + ".png", 'L') + tar_member("s", "abc");
  const std::string inner = tar_member("n01440764.tar", tar_member("n01440764_1.JPEG", "x") + end);
  std::vector<std::string> seeds;
  for (const std::string& members : {flat, flat + pax, flat + gnu, inner}) seeds.push_back("\1" + members + end);
  return seeds;
}

// A label file under any name for a model of classes with names, without, or of ImageNet's.
void run_labels(const std::string& whole) {
  std::string input = whole;
  const int names = choice(input, 3);
  const ModelClasses classes = names == 0   ? ModelClasses(3, {"tabby cat", "Dog", "crane"})
                               : names == 1 ? ModelClasses(1000)
                                            : ModelClasses(2, {}, true);
  const auto part = parts(input, 2);
  refused_or_read([&] {
    const LabelFile labels = read_labels(put(part[1].empty() ? "l.txt" : "LOC_val_solution.csv", part[0]), classes);
    for (const char* file : {"a/x.JPEG", "ILSVRC2012_val_00000001.JPEG", ""}) labels.find(file);
  });
}

std::vector<std::string> labels_seeds() {
  return {std::string("\0x.JPEG 1\ny.JPEG,2\n", 18),
          std::string("\0{\"x\": \"Dog\", \"y\": \"crane\"}", 27),
          "\1ImageId,PredictionString\nILSVRC2012_val_00000001,n01751748 111 108 230 366\n",
          "\1mv ILSVRC2012_val_00000293.JPEG n01440764/\n",
          "\1"
          "490\n361\n171\n",
          "\1n01440764\nn01751748\n",
          "\2[0, 1, 1]",
          "\2{\"0\": \"a\", \"1\": \"b\"}",
          "\2\xef\xbb\xbfx;0\ny\t1\n"};
}

// What a cache holds under the right key and checksum: pixels, or the index of an archive.
void run_cache(const std::string& whole) {
  std::string input = whole;
  const bool index = choice(input, 2) == 1;
  const std::string name = index ? "indexed" : "decoded", cache = path_of(name);
  static std::string heads[2], files[2];
  ImageConfig config;
  config.height = config.width = 4;
  const auto use = [&] {
    ImageFolder images = list_images(index ? path_of("c.tar") : path_of("c"), ModelClasses(2, {"a", "b"}), "", cache);
    load_pixels(images, {0}, config);
  };
  if (files[index].empty()) {
    std::string tar = tar_seeds()[0].substr(1);
    mend(tar);
    put("c.tar", tar);
    for (const char* file : {"c/a/x.png", "c/b/x.png"}) put(file, read_file(kImages + "row.png"));
    refused_or_read(use);
    for (const auto& entry : fs::recursive_directory_iterator(cache)) {
      const std::string text = entry.is_regular_file() ? read_file(entry.path().string()) : "";
      const size_t end = text.find('\0');
      if (end == std::string::npos || (index && text.find("c.tar") == std::string::npos)) continue;
      heads[index] = text.substr(0, end + 1);
      files[index] = fs::relative(entry.path(), path_of("")).string();
    }
    require(!files[index].empty(), "no cache entry to replace");
  }
  const uint64_t sum = checksum(input, 0);
  put(files[index], heads[index] + std::string(reinterpret_cast<const char*>(&sum), 8) + input);
  refused_or_read(use);
}

std::vector<std::string> cache_seeds() {
  std::vector<std::string> seeds = {std::string(49, '\0'), std::string(10, '\0')};
  seeds.push_back("\1" + std::string("0 512 3\na/x.png", 15) + std::string(1, '\0'));
  seeds.push_back("\1" + std::string("0 512 3\n/x.png", 14) + std::string(1, '\0'));  // a class folder without a name
  return seeds;
}

const Harness kImage("image", run_image, image_seeds);
const Harness kTar("tar", run_tar, tar_seeds);
const Harness kLabels("labels", run_labels, labels_seeds);
const Harness kCache("cache", run_cache, cache_seeds);

}  // namespace
}  // namespace bcq::fuzz
