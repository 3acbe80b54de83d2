// Decoding, Pillow's resampling and the evaluation transform against stored outputs of Pillow
// and torchvision (tests/reference/make_image_fixtures.py), and what has to be refused.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "data/image/image.h"
#include "data/image/jpeg.h"
#include "engine/core/check.h"
#include "engine/file/json.h"
#include "tests/support.h"

namespace bcq {
namespace {

const std::string kDir = "tests/fixtures/image/";

uint64_t fnv(const void* data, size_t n) {
  uint64_t h = 0xcbf29ce484222325u;
  for (size_t i = 0; i < n; ++i) h = (h ^ static_cast<const uint8_t*>(data)[i]) * 0x100000001b3u;
  return h;
}
std::string hash(const void* data, size_t n) { return format("%016x", fnv(data, n)); }

const json& record() {
  static const json r = read_json(kDir + "image.json");
  return r;
}

ImageConfig config_of(const json& c) {
  ImageConfig config;
  config.height = config.width = c.at("size").get<int>();
  config.crop_pct = c.at("crop_pct").get<double>();
  config.interpolation = c.at("mode").get<std::string>();
  if (c.at("norm") == "half") {  // else ImageNet's, which are the default
    std::fill_n(config.mean, 3, 0.5f);
    std::fill_n(config.std, 3, 0.5f);
  }
  return config;
}

std::string refusal(const std::string& bytes) {
  return test::message_of<InputError>([&] { decode_image(bytes, "some/file"); });
}

std::string big_endian(uint32_t v) {
  return {static_cast<char>(v >> 24), static_cast<char>(v >> 16), static_cast<char>(v >> 8), static_cast<char>(v)};
}

// A PNG chunk with its checksum.
std::string chunk(const std::string& type, const std::string& data) {
  const std::string body = type + data;
  uint32_t crc = ~0u;
  for (const char c : body) {
    crc ^= static_cast<uint8_t>(c);
    for (int k = 0; k < 8; ++k) crc = (crc & 1u) ? 0xedb88320u ^ (crc >> 1) : crc >> 1;
  }
  return big_endian(static_cast<uint32_t>(data.size())) + body + big_endian(~crc);
}

// zlib stream that stores `data` (shorter than 64 KiB) uncompressed.
std::string stored(const std::string& data) {
  const uint32_t n = static_cast<uint32_t>(data.size());
  uint32_t a = 1, b = 0;
  for (const char c : data) {
    a = (a + static_cast<uint8_t>(c)) % 65521;
    b = (b + a) % 65521;
  }
  std::string s = "\x78\x01\x01";
  for (const uint32_t v : {n, ~n}) s += {static_cast<char>(v), static_cast<char>(v >> 8)};
  return s + data + big_endian(b << 16 | a);
}

std::string png(uint32_t width, uint32_t height, char depth, char color, const std::string& before_data,
                const std::string& data) {
  const std::string header = big_endian(width) + big_endian(height) + std::string{depth, color, 0, 0, 0};
  return std::string("\x89PNG\r\n\x1a\n", 8) + chunk("IHDR", header) + before_data + chunk("IDAT", data) +
         chunk("IEND", "");
}

TEST_CASE("image: PNG of every kind decodes to the bytes of Pillow's convert(RGB)") {
  for (const auto& entry : record().at("decode").items()) {
    const std::string name = entry.key();  // CAPTURE cannot take a structured binding in clang
    const json& want = entry.value();
    if (!want.contains("fnv")) continue;
    CAPTURE(name);
    const Image image = load_image(kDir + name);
    CHECK(image.height == want.at("height"));
    CHECK(image.width == want.at("width"));
    CHECK(hash(image.rgb.data(), image.rgb.size()) == want.at("fnv").get<std::string>());
  }
}

TEST_CASE("image: 16-bit gray keeps the high byte") {
  const Image image = load_image(kDir + "gray16.png");
  REQUIRE(image.rgb.size() == 9 * 14 * 3);
  const std::string row("\0\x12\x5a\xfe\x01", 5);  // filter byte, samples 0x125a and 0xfe01
  const Image tiny = decode_image(png(2, 1, 16, 0, "", stored(row)), "tiny");
  CHECK(tiny.rgb == std::vector<uint8_t>{0x12, 0x12, 0x12, 0xfe, 0xfe, 0xfe});
}

TEST_CASE("image: palette indices without an entry are black") {
  const std::string row("\0\0\1\2\xff", 5);
  const Image image = decode_image(png(4, 1, 8, 3, chunk("PLTE", "\x09\x08\x07\x06\x05\x04"), stored(row)), "palette");
  CHECK(image.rgb == std::vector<uint8_t>{9, 8, 7, 6, 5, 4, 0, 0, 0, 0, 0, 0});
}

// In the build that decodes as Pillow does.
bool turbo() { return std::string(jpeg_decoder()).rfind("libjpeg-turbo", 0) == 0; }

TEST_CASE("image: JPEG decodes within a few levels of Pillow, and with libjpeg-turbo exactly") {
  for (const std::string name : {"baseline", "progressive", "full_chroma", "odd", "gray", "cmyk", "ycck"}) {
    CAPTURE(name);
    const Image ours = load_image(kDir + name + ".jpg"), theirs = load_image(kDir + "decoded_" + name + ".png");
    REQUIRE(ours.rgb.size() == theirs.rgb.size());
    int worst = 0;
    double sum = 0;
    for (size_t i = 0; i < ours.rgb.size(); ++i) {
      const int d = std::abs(ours.rgb[i] - theirs.rgb[i]);
      worst = std::max(worst, d);
      sum += d;
    }
    // Of 4:2:2 stb weighs the chroma of the last two columns the wrong way round.
    CHECK(worst <= (turbo() ? 0 : name == "odd" ? 40 : 6));
    CHECK(sum / static_cast<double>(ours.rgb.size()) < 0.3);
  }
}

TEST_CASE("image: resizing equals Pillow bit for bit") {
  for (const json& c : record().at("resize")) {
    CAPTURE(c.dump());
    const Image image = load_image(kDir + c.at("input").get<std::string>());
    const Image want = load_image(kDir + c.at("expected").get<std::string>());
    const Image got = resize(image, c.at("height"), c.at("width"), c.at("mode"));
    CHECK(got.height == want.height);
    CHECK(got.width == want.width);
    CHECK(got.rgb == want.rgb);
  }
}

TEST_CASE("image: eight pixels to three, by hand") {
  Image row{1, 8, {}};
  for (const int v : {0, 10, 20, 40, 80, 160, 200, 255}) row.rgb.insert(row.rgb.end(), 3, static_cast<uint8_t>(v));
  CHECK(resize(row, 1, 3, "bicubic").rgb == std::vector<uint8_t>{6, 6, 6, 68, 68, 68, 208, 208, 208});
}

TEST_CASE("image: a window of a resize is that part of the whole") {
  const Image image = load_image(kDir + "rgb.png");
  for (const auto& [h, w] : {std::pair{20, 29}, std::pair{37, 60}, std::pair{50, 53}, std::pair{37, 53}}) {
    const Image whole = resize(image, h, w, "bicubic");
    const Region part{3, 5, h - 7, w - 11};
    const Image got = resize(image, h, w, "bicubic", part);
    REQUIRE(got.height == part.height);
    for (int y = 0; y < part.height; ++y) {
      const size_t from = static_cast<size_t>((part.top + y) * w + part.left) * 3;
      CHECK(std::memcmp(&got.rgb[static_cast<size_t>(y * part.width) * 3], &whole.rgb[from],
                        static_cast<size_t>(part.width) * 3) == 0);
    }
  }
  CHECK_THROWS_AS(resize(image, 10, 10, "bicubic", {5, 5, 6, 5}), Error);
}

TEST_CASE("image: the whole transform equals torchvision bit for bit") {
  for (const json& c : record().at("transform")) {
    CAPTURE(c.dump());
    const Tensor pixels = preprocess(load_image(kDir + c.at("input").get<std::string>()), config_of(c));
    CHECK(pixels.shape == Shape{3, c.at("size"), c.at("size")});
    CHECK(pixels[0] == c.at("first").get<float>());
    CHECK(hash(pixels.data, static_cast<size_t>(pixels.size()) * sizeof(float)) == c.at("fnv").get<std::string>());
  }
}

TEST_CASE("image: all 256 levels normalise as torchvision does") {
  Image ramp{16, 16, {}};
  for (int v = 0; v < 256; ++v) ramp.rgb.insert(ramp.rgb.end(), 3, static_cast<uint8_t>(v));
  for (const auto& [norm, want] : record().at("normalise").items()) {
    const Tensor t =
        preprocess(ramp, config_of({{"size", 16}, {"crop_pct", 1.0}, {"mode", "bicubic"}, {"norm", norm}}));
    CHECK(hash(t.data, static_cast<size_t>(t.size()) * sizeof(float)) == want.get<std::string>());
  }
}

TEST_CASE("image: crop offsets round half to even") {
  // Images at the resized size, their columns numbered: the first column kept is the offset.
  for (const auto& [width, want] : {std::pair{330 - 224, 53}, {331 - 224, 54}, {333 - 224, 54}, {335 - 224, 56}}) {
    Image image{1, width + 1, {}};
    for (int x = 0; x <= width; ++x) image.rgb.insert(image.rgb.end(), 3, static_cast<uint8_t>(x));
    ImageConfig config;
    config.height = config.width = 1;
    config.crop_pct = 1.0;
    CHECK(resize_and_crop(image, config).rgb[0] == want);
  }
}

TEST_CASE("image: a narrow picture costs what the crop needs, not what the resize would") {
  Image image{1, 60000, std::vector<uint8_t>(180000, 77)};
  ImageConfig config;
  config.height = config.width = 224;
  const Image crop = resize_and_crop(image, config);
  CHECK(crop.rgb == std::vector<uint8_t>(224 * 224 * 3, 77));
}

TEST_CASE("image: truncated and damaged files are refused by name, at every length") {
  for (const std::string name : {"baseline.jpg", "progressive.jpg", "full_chroma.jpg", "rgb.png", "palette.png"}) {
    CAPTURE(name);
    const std::string bytes = test::read_text(kDir + name);
    for (size_t n = 0; n < bytes.size(); n += 1 + n / 9) {
      const std::string message = refusal(bytes.substr(0, n));
      CHECK(test::contains(message, "some/file"));
    }
    CHECK(test::contains(refusal(bytes.substr(0, bytes.size() - 1)), "truncated"));
    CHECK_NOTHROW(decode_image(bytes + "bytes after the end", "some/file"));
  }
  std::string flipped = test::read_text(kDir + "rgb.png");
  flipped[flipped.size() / 2] ^= 1;
  CHECK(test::contains(refusal(flipped), "checksum"));
}

TEST_CASE("image: other formats, bombs, nonsense") {
  CHECK(test::contains(refusal(""), "neither"));
  CHECK(test::contains(refusal("GIF89a and more"), "neither"));
  CHECK(test::contains(refusal(png(15000, 15000, 8, 2, "", stored("\0"))), "too large"));
  CHECK(!refusal(png(0, 5, 8, 2, "", stored("\0"))).empty());
  CHECK(!refusal(png(5, 5, 8, 2, "", stored("\0"))).empty());  // too little data
  CHECK(!refusal(png(5, 5, 8, 2, "", "not a zlib stream")).empty());
  CHECK(!refusal(png(5, 5, 8, 3, "", stored(std::string(30, '\0')))).empty());  // palette missing
  CHECK(!refusal("\xff\xd8\xff\xd9").empty());
  CHECK_THROWS_AS(load_image("tests/fixtures/no-such-image.png"), InputError);
  if (turbo()) {  // half of the entropy-coded data and then the end: nothing is made up for the rest
    const std::string whole = test::read_text(kDir + "baseline.jpg");
    CHECK(test::contains(refusal(whole.substr(0, whole.size() - 1000) + "\xff\xd9"), "cannot decode"));
  }
  // Random damage to a JPEG may decode or be refused; it must not do anything else.
  const std::string jpeg = test::read_text(kDir + "baseline.jpg");
  for (size_t i = 2; i + 2 < jpeg.size(); i += 7) {
    std::string damaged = jpeg;
    damaged[i] = static_cast<char>(damaged[i] ^ (1 << (i % 8)));
    try {
      decode_image(damaged, "damaged");
    } catch (const InputError&) {
    }
  }
}

TEST_CASE("image: a four-component JPEG that does not say how its inks are stored") {
  std::string bytes = test::read_text(kDir + "cmyk.jpg");
  const size_t adobe = bytes.find("Adobe");
  REQUIRE(adobe != std::string::npos);
  bytes[adobe] = 'X';
  if (turbo())  // as Pillow: taken as Adobe's
    CHECK(decode_image(bytes, "some/file").rgb == load_image(kDir + "decoded_cmyk.png").rgb);
  else
    CHECK(test::contains(refusal(bytes), "Adobe"));
}

TEST_CASE("image: settings that do not exist") {
  const Image image{4, 4, std::vector<uint8_t>(48, 1)};
  ImageConfig config;
  config.interpolation = "lanczos";
  CHECK(test::contains(test::message_of<InputError>([&] { preprocess(image, config); }), "lanczos"));
  config = {};
  config.width = 192;
  CHECK_THROWS_AS(preprocess(image, config), InputError);
  config = {};
  config.crop_pct = 0;
  CHECK_THROWS_AS(preprocess(image, config), InputError);
  config = {};
  config.std[1] = 0;
  CHECK_THROWS_AS(preprocess(image, config), InputError);
}

}  // namespace
}  // namespace bcq
