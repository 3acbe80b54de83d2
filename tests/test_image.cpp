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

using test::load_image;

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

// In the build that decodes as Pillow does.
bool turbo() { return std::string(jpeg_decoder()).rfind("libjpeg-turbo", 0) == 0; }

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

TEST_CASE("image: 16-bit gray is cut off at 255 as Pillow does it, other 16-bit samples keep their high byte") {
  const Image image = load_image(kDir + "gray16.png");
  REQUIRE(image.rgb.size() == 9 * 14 * 3);
  const std::string row("\0\0\x5a\0\xff\1\0\xfe\1", 9);  // filter byte, samples 90, 255, 256, 65025
  CHECK(decode_image(png(4, 1, 16, 0, "", stored(row)), "gray").rgb ==
        std::vector<uint8_t>{90, 90, 90, 255, 255, 255, 255, 255, 255, 255, 255, 255});
  const std::string with_alpha("\0\x12\x5a\0\0", 5);
  CHECK(decode_image(png(1, 1, 16, 4, "", stored(with_alpha)), "gray and alpha").rgb ==
        std::vector<uint8_t>{0x12, 0x12, 0x12});
  const std::string color("\0\x12\x5a\0\xff\xfe\1", 7);
  CHECK(decode_image(png(1, 1, 16, 2, "", stored(color)), "color").rgb == std::vector<uint8_t>{0x12, 0, 0xfe});
}

TEST_CASE("image: a PNG without its end decodes as the whole does, one that lacks pixels does not") {
  for (const std::string name : {"rgb.png", "palette.png", "gray16.png"}) {
    CAPTURE(name);
    const std::string whole = test::read_text(kDir + name);
    const Image want = decode_image(whole, name);
    for (size_t cut = 1; cut <= 16; ++cut)  // IEND, then the checksum of the data
      CHECK(decode_image(whole.substr(0, whole.size() - cut), name).rgb == want.rgb);
    CHECK(test::contains(refusal(whole.substr(0, whole.size() - 17)), "truncated"));
  }
  const std::string row("\0\1\2\3", 4), half = png(1, 2, 8, 2, "", stored(row));  // two rows stated, one there
  CHECK(test::contains(refusal(half.substr(0, half.size() - 12)), "cannot decode"));
}

std::string little(uint64_t v, size_t bytes) {
  std::string s;
  for (size_t i = 0; i < bytes; ++i) s += static_cast<char>(v >> (8 * i));
  return s;
}
std::string bmp(uint32_t width, uint32_t height, uint32_t bits, const std::string& palette, const std::string& rows,
                uint32_t compression = 0) {
  return "BM" + little(0, 8) + little(static_cast<uint32_t>(54 + palette.size()), 4) + little(40, 4) +
         little(width, 4) + little(height, 4) + little(1, 2) + little(bits, 2) + little(compression, 4) +
         std::string(20, '\0') + palette + rows;
}

TEST_CASE("image: BMP of the usual kinds under any name") {
  const std::string rows("\1\2\3\4\5\6\0\0\x11\x12\x13\x14\x15\x16\0\0", 16);
  const std::vector<uint8_t> up{0x13, 0x12, 0x11, 0x16, 0x15, 0x14, 3, 2, 1, 6, 5, 4};
  const std::vector<uint8_t> down{3, 2, 1, 6, 5, 4, 0x13, 0x12, 0x11, 0x16, 0x15, 0x14};
  const Image image = decode_image(bmp(2, 2, 24, "", rows), "a.jpg");
  CHECK(image.rgb == up);
  CHECK(image.height == 2);
  CHECK(decode_image(bmp(2, static_cast<uint32_t>(-2), 24, "", rows), "a.jpg").rgb == down);
  CHECK(decode_image(bmp(2, 1, 32, "", rows.substr(0, 8)), "a.jpg").rgb == std::vector<uint8_t>{3, 2, 1, 0, 6, 5});
  const std::string colors("\1\2\3\0\4\5\6\0", 8);
  CHECK(decode_image(bmp(3, 1, 1, colors, std::string("\x40\0\0\0", 4)), "a").rgb ==
        std::vector<uint8_t>{3, 2, 1, 6, 5, 4, 3, 2, 1});
  CHECK(decode_image(bmp(3, 1, 4, colors, std::string("\x10\x10\0\0", 4)), "a").rgb ==
        std::vector<uint8_t>{6, 5, 4, 3, 2, 1, 6, 5, 4});
  CHECK(decode_image(bmp(1, 1, 8, colors, std::string("\1\0\0\0", 4)), "a").rgb == std::vector<uint8_t>{6, 5, 4});
  CHECK(test::contains(refusal(bmp(1, 1, 8, colors, std::string("\2\0\0\0", 4))), "colour 2 of 2"));
  CHECK(test::contains(refusal(bmp(2, 2, 24, "", rows.substr(0, 15))), "truncated BMP"));
  CHECK(test::contains(refusal(bmp(2, 2, 8, colors, rows, 1)), "rare"));  // run lengths
  CHECK(test::contains(refusal(bmp(60000, 60000, 24, "", rows)), "too large"));
  for (size_t n = 0; n < 70; ++n) CHECK(!refusal(bmp(2, 2, 24, "", rows).substr(0, n)).empty());
}

// A GIF of 2 x 2 pixels 0 1 / 2 0 in three colours; `control` stands before the picture.
std::string gif(const std::string& control, const std::string& place) {
  const std::string colors("\1\2\3\4\5\6\7\x08\x09\0\0\0", 12);
  // Codes of three bits: clear 4, 0, 1, 2, 0, end 5; the fourth makes them four bits wide for the last.
  const std::string data("\x02\x03\x44\x04\x05\x00", 6);
  return "GIF89a" + std::string("\2\0\2\0\x81\1\0", 7) + colors + control + "," + place + data + ";";
}

TEST_CASE("image: the first picture of a GIF, its transparent colour as any other") {
  const std::string whole("\0\0\0\0\2\0\2\0\0", 9);
  const std::vector<uint8_t> want{1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3};
  const std::string plain = gif("", whole);
  CHECK(decode_image(plain, "a.jpg").rgb == want);
  const std::string transparent("!\xf9\4\1\0\0\1\0", 8);
  CHECK(decode_image(gif(transparent, whole), "a.jpg").rgb == want);
  CHECK(decode_image(gif("!\xfe\3abc" + std::string(1, '\0'), whole) + "more", "a.jpg").rgb == want);
  CHECK(test::contains(refusal(gif("", std::string("\1\0\0\0\1\0\2\0\0", 9))), "does not fill"));
  for (size_t n = 4; n + 1 < plain.size(); ++n) CHECK(test::contains(refusal(plain.substr(0, n)), "GIF"));
  std::string short_data = plain;
  short_data[short_data.size() - 4] = '\1';  // the end follows the first pixel
  CHECK(test::contains(refusal(short_data), "no colour for pixel 1"));
}

TEST_CASE("image: formats that are not decoded are named, whatever the file is called") {
  for (const auto& [bytes, name] : {std::pair{std::string("RIFF\x24\0\0\0WEBPVP8 ", 16), "WebP"},
                                    {std::string("II*\0\x08\0\0\0", 8), "TIFF"},
                                    {std::string("MM\0*\0\0\0\x08", 8), "TIFF"},
                                    {std::string("\0\0\0\x0cjP  \r\n\x87\n", 12), "JPEG 2000"},
                                    {std::string("\0\0\0\x1c"
                                                 "ftypavif",
                                                 12),
                                     "AVIF"}})
    CHECK(test::contains(refusal(bytes), name));
}

// A JPEG segment.
std::string segment(char marker, const std::string& data) {
  const auto n = static_cast<uint32_t>(data.size() + 2);
  return std::string{'\xff', marker, static_cast<char>(n >> 8), static_cast<char>(n)} + data;
}
std::string frame(char marker, uint32_t height, uint32_t width) {
  std::string size{static_cast<char>(height >> 8), static_cast<char>(height), static_cast<char>(width >> 8),
                   static_cast<char>(width)};
  return segment(marker, "\x08" + size + std::string("\1\1\x11\0", 4));
}
const std::string kScan = segment('\xda', std::string("\1\1\0\0\x3f\0", 6)) + std::string(40, '\0');
// Nothing but zeros: quantization and one code of one bit for each table.
const std::string kTables = segment('\xdb', std::string(1, '\0') + std::string(64, '\1')) +
                            segment('\xc4', std::string("\0\1", 2) + std::string(16, '\0')) +
                            segment('\xc4', std::string("\x10\1", 2) + std::string(16, '\0'));
std::string jpeg(const std::string& body) { return "\xff\xd8" + body + "\xff\xd9"; }

TEST_CASE("image: Huffman tables of a JPEG hold at most 256 symbols, all of them there") {
  CHECK(decode_image(jpeg(kTables + frame('\xc0', 8, 8) + kScan), "gray").rgb == std::vector<uint8_t>(192, 128));
  const auto table = [](const std::string& counts, size_t symbols, const std::string& before = "") {
    return jpeg(kTables + segment('\xc4', before + "\x13" + counts + std::string(symbols, '\1')) + frame('\xc0', 8, 8) +
                kScan);
  };
  const std::string zeros(14, '\0');
  CHECK(test::contains(refusal(table(zeros + "\x64\xc8", 300)), "table of 300 symbols"));
  CHECK(test::contains(refusal(table(std::string(16, '\xff'), 4080)), "table of 4080 symbols"));
  CHECK(test::contains(refusal(table(zeros + "\1\1", 1)), "table of 2 symbols"));  // one is there
  CHECK(test::contains(refusal(table(zeros.substr(0, 10), 0)), "Huffman"));
  const std::string sound = "\x12" + zeros + std::string("\0\1\1", 3);  // and another behind it
  CHECK(test::contains(refusal(table(zeros + "\x64\xc8", 300, sound)), "table of 300 symbols"));
  CHECK(test::contains(refusal(jpeg(kTables + frame('\xc0', 8, 8) + kScan +
                                    segment('\xc4', "\x13" + zeros + "\x64\xc8" + std::string(300, '\1')) + kScan)),
                       "table of 300 symbols"));  // between two scans
}

TEST_CASE("image: what decoding a JPEG would cost is known before it begins") {
  for (const char marker : {'\xc0', '\xc1', '\xc2'})
    CHECK(test::contains(refusal(jpeg(kTables + frame(marker, 65455, 1728) + kScan)), "cannot hold 113106240 pixels"));
  CHECK(test::contains(refusal(jpeg(kTables + frame('\xc0', 64, 64175) + kScan)), "cannot hold 4107200 pixels"));
  std::string scans;
  for (int i = 0; i < 700; ++i) scans += kScan;
  CHECK(test::contains(refusal(jpeg(kTables + frame('\xc2', 2000, 2000) + scans)), "scans"));
  CHECK(!test::contains(refusal(jpeg(kTables + frame('\xc2', 64, 64) + scans)), "scans"));
  CHECK(test::contains(refusal(jpeg(kTables + frame('\xc0', 8, 8) + frame('\xc0', 8, 8) + kScan)), "second frame"));
  CHECK(test::contains(refusal(jpeg(kTables + segment('\xc0', "\x08") + kScan)), "frame header"));
}

// 16 x 8 pixels of gray, coded by libjpeg-turbo.
const uint8_t kArithmetic[] = {
    255, 216, 255, 224, 0,   16, 74,  70,  73,  70, 0,  1,   1,  0,   0,   1,   0,   1,   0,   0,  255, 219, 0,  67,
    0,   13,  9,   10,  11,  10, 8,   13,  11,  10, 11, 14,  14, 13,  15,  19,  32,  21,  19,  18, 18,  19,  39, 28,
    30,  23,  32,  46,  41,  49, 48,  46,  41,  45, 44, 51,  58, 74,  62,  51,  54,  70,  55,  44, 45,  64,  87, 65,
    70,  76,  78,  82,  83,  82, 50,  62,  90,  97, 90, 80,  96, 74,  81,  82,  79,  255, 201, 0,  11,  8,   0,  8,
    0,   16,  1,   1,   17,  0,  255, 204, 0,   6,  0,  16,  16, 5,   255, 218, 0,   8,   1,   1,  0,   0,   63, 0,
    255, 0,   106, 133, 232, 43, 94,  79,  167, 21, 23, 148, 21, 112, 251, 41,  128, 255, 217};

TEST_CASE("image: an arithmetic-coded JPEG is decoded where the decoder can, or named") {
  const std::string bytes(reinterpret_cast<const char*>(kArithmetic), sizeof kArithmetic);
  if (!turbo()) {
    CHECK(test::contains(refusal(bytes), "JPEG=turbo"));
    return;
  }
  const Image image = decode_image(bytes, "arithmetic");
  CHECK(image.rgb.size() == 16 * 8 * 3);
  CHECK(hash(image.rgb.data(), image.rgb.size()) == "7fbfbbe663af2df7");
  for (size_t n = 0; n < bytes.size(); ++n) CHECK(!refusal(bytes.substr(0, n)).empty());
}

TEST_CASE("image: palette indices without an entry are black") {
  const std::string row("\0\0\1\2\xff", 5);
  const Image image = decode_image(png(4, 1, 8, 3, chunk("PLTE", "\x09\x08\x07\x06\x05\x04"), stored(row)), "palette");
  CHECK(image.rgb == std::vector<uint8_t>{9, 8, 7, 6, 5, 4, 0, 0, 0, 0, 0, 0});
}

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
    for (size_t n = 0; n + 16 < bytes.size(); n += 1 + n / 9) {
      const std::string message = refusal(bytes.substr(0, n));
      CHECK(test::contains(message, "some/file"));
    }
    if (name.find("jpg") != name.npos) CHECK(test::contains(refusal(bytes.substr(0, bytes.size() - 1)), "truncated"));
    CHECK_NOTHROW(decode_image(bytes + "bytes after the end", "some/file"));
  }
  std::string flipped = test::read_text(kDir + "rgb.png");
  flipped[flipped.size() / 2] ^= 1;
  CHECK(test::contains(refusal(flipped), "checksum"));
}

TEST_CASE("image: other formats, bombs, nonsense") {
  CHECK(test::contains(refusal(""), "neither"));
  CHECK(test::contains(refusal("<html>not found</html>"), "neither"));
  CHECK(test::contains(refusal("GIF89a and more"), "GIF"));
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
