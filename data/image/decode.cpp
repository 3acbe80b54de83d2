// Decoding through stb_image (JPEG: or libjpeg-turbo) with the checks it leaves out; see image.h. stb fills in what a
// truncated file lacks, trusts the sizes of Huffman tables and does not look at PNG checksums, so every container is
// walked here first.

// The one place where stb_image's implementation is compiled.
#define STB_IMAGE_IMPLEMENTATION
#define STB_IMAGE_STATIC  // programs may have their own
#define STBI_ONLY_JPEG
#define STBI_ONLY_PNG
#define STBI_ONLY_GIF
#define STBI_NO_STDIO
#define STBI_NO_HDR
#define STBI_NO_LINEAR
#define STBI_MAX_DIMENSIONS 65535
#include <stb/stb_image.h>
#include <zlib.h>

#include <algorithm>
#include <memory>
#include <string_view>

#include "data/image/image.h"
#include "data/image/jpeg.h"
#include "engine/core/check.h"

namespace bcq {
namespace {

constexpr size_t kMaxBytes = size_t{512} << 20;
constexpr int64_t kMaxPixels = 178956970;
// Of a JPEG: each scan may touch all pixels. Twelve scans of the largest image; a second of work or two.
constexpr int64_t kMaxScannedPixels = int64_t{1} << 31;
constexpr std::string_view kPngSignature("\x89PNG\r\n\x1a\n", 8);
constexpr std::string_view kPngEnd("\0\0\0\0IEND\xae\x42\x60\x82", 12);

uint32_t byte_at(const std::string& s, size_t i) { return static_cast<uint8_t>(s[i]); }
uint32_t big16(const std::string& s, size_t i) { return byte_at(s, i) << 8 | byte_at(s, i + 1); }
uint32_t big32(const std::string& s, size_t i) { return big16(s, i) << 16 | big16(s, i + 2); }
uint32_t little16(const std::string& s, size_t i) { return byte_at(s, i) | byte_at(s, i + 1) << 8; }
uint32_t little32(const std::string& s, size_t i) { return little16(s, i) | little16(s, i + 2) << 16; }

// First position at or after `i` of a marker inside entropy-coded data: an 0xff that is
// neither a stuffed byte, a restart marker nor fill.
size_t end_of_scan(const std::string& s, size_t i) {
  for (; i + 1 < s.size(); ++i) {
    const uint32_t next = byte_at(s, i + 1);
    if (byte_at(s, i) == 0xff && next != 0 && next != 0xff && (next < 0xd0 || next > 0xd7)) return i;
  }
  return s.size();
}

// The tables of a DHT segment at [i, end): a class and number, 16 counts, and as many symbols. stb 2.27 writes past
// its own table of 256 when the counts say more.
void check_huffman_tables(const std::string& s, size_t i, size_t end, const std::string& where) {
  while (i < end) {
    size_t count = 0;
    for (size_t k = 1; k <= 16 && i + k < end; ++k) count += byte_at(s, i + k);
    require_input(count <= 256 && i + 17 + count <= end, "%s: damaged JPEG: a Huffman table of %d symbols at byte %d",
                  where, count, i);
    i += 17 + count;
  }
}

// A frame header at `i`, `length` bytes: what decoding will cost, before anything is decoded. Every 8 x 8 block of
// every component needs a bit of its own in the first scan that has it, unless the coding is arithmetic.
JpegFrame read_frame(const std::string& s, size_t i, size_t length, const std::string& where) {
  JpegFrame frame;
  require_input(length >= 8 && length >= 8 + 3 * byte_at(s, i + 7), "%s: damaged JPEG: frame header at byte %d", where,
                i);
  frame.components = static_cast<int>(byte_at(s, i + 7));
  frame.pixels = int64_t{big16(s, i + 3)} * big16(s, i + 5);
  int64_t sampled = 0, widest = 1, highest = 1;
  for (size_t c = 0; c < byte_at(s, i + 7); ++c) {
    const int64_t across = byte_at(s, i + 9 + 3 * c) >> 4, down = byte_at(s, i + 9 + 3 * c) & 15;
    sampled += across * down;
    widest = std::max(widest, across);
    highest = std::max(highest, down);
  }
  frame.least_bits = frame.pixels / 64 * sampled / (widest * highest);
  return frame;
}

// Follow the markers to the end-of-image marker: a file that stops before it is truncated.
JpegFrame check_jpeg(const std::string& s, const std::string& where) {
  JpegFrame frame;
  bool adobe = false;
  int64_t scans = 0;
  size_t i = 2;
  while (true) {
    while (i + 1 < s.size() && (byte_at(s, i) != 0xff || byte_at(s, i + 1) == 0xff)) ++i;
    require_input(i + 1 < s.size(), "%s: truncated JPEG: no end-of-image marker in %d bytes", where, s.size());
    const uint32_t marker = byte_at(s, i + 1);
    i += 2;
    if (marker == 0xd9) break;
    if (marker == 0x00 || marker == 0x01 || (marker >= 0xd0 && marker <= 0xd8)) continue;
    const bool whole = i + 2 <= s.size() && big16(s, i) >= 2 && i + big16(s, i) <= s.size();
    require_input(whole, "%s: truncated JPEG: segment 0x%02x at byte %d does not end", where, marker, i - 2);
    const uint32_t length = big16(s, i);
    if (marker == 0xc4) check_huffman_tables(s, i + 2, i + length, where);
    if (marker >= 0xc0 && marker <= 0xcf && marker != 0xc4 && marker != 0xc8 && marker != 0xcc) {
      require_input(frame.components == 0, "%s: damaged JPEG: a second frame at byte %d", where, i - 2);
      frame = read_frame(s, i, length, where);
      frame.arithmetic = marker > 0xc8;
    }
    if (marker == 0xee && length >= 7 && s.compare(i + 2, 5, "Adobe") == 0) adobe = true;
    i += length;
    if (marker != 0xda) continue;
    ++scans;
    require_input(frame.pixels * scans <= kMaxScannedPixels, "%s: JPEG of %d pixels in %d or more scans: too much work",
                  where, frame.pixels, scans);
    i = end_of_scan(s, i);
  }
  require_input(frame.arithmetic || frame.least_bits / 8 <= static_cast<int64_t>(s.size()),
                "%s: truncated JPEG: %d bytes cannot hold %d pixels", where, s.size(), frame.pixels);
  frame.inks_known = frame.components != 4 || adobe;
  return frame;
}

// Check every chunk up to IEND. Returns the bytes to decode: the file itself, except that an end that is missing or
// cut, which Pillow does not miss, is added, and a short palette is filled up to 256 black entries, because stb would
// look indices beyond it up in memory it never wrote.
std::string checked_png(std::string s, const std::string& where) {
  size_t i = kPngSignature.size(), palette = 0;
  bool data = false;
  while (true) {
    if (data && (s.size() - i < 8 || s.compare(i, 8, kPngEnd, 0, 8) == 0)) {
      s.replace(i, s.npos, kPngEnd);
      break;
    }
    require_input(i + 12 <= s.size(), "%s: truncated PNG: no IEND chunk in %d bytes", where, s.size());
    const size_t length = big32(s, i), end = i + 12 + length;
    if (end > s.size() && end - 4 <= s.size() && s.compare(i + 4, 4, "IDAT") == 0) {  // cut in its checksum
      s.replace(end - 4, s.npos, std::string(4, '\0').append(kPngEnd));
      break;
    }
    require_input(end <= s.size(), "%s: truncated PNG: the chunk at byte %d does not end", where, i);
    const auto checksum = ::crc32(0, reinterpret_cast<const Bytef*>(&s[i + 4]), static_cast<uInt>(length + 4));
    require_input(checksum == big32(s, end - 4), "%s: damaged PNG: checksum of the chunk at byte %d", where, i);
    if (s.compare(i + 4, 4, "PLTE") == 0 && palette == 0) palette = i;
    data = data || s.compare(i + 4, 4, "IDAT") == 0;
    i = end;
  }
  if (palette == 0 || big32(s, palette) >= 768 || big32(s, palette) % 3 != 0) return s;
  const size_t length = big32(s, palette);
  std::string filled = s.substr(0, palette + 8 + length) + std::string(768 - length, '\0');
  filled += s.substr(palette + 8 + length);
  filled[palette + 2] = 3;  // 768, big endian
  filled[palette + 3] = 0;
  return filled;
}

// The bytes of a GIF's first picture as stb is to have them: it would leave out pixels of the transparent colour and
// fill what the data lacks with the background's, so neither is left in the file; Pillow's convert("RGB") looks all
// indices up. InputError: no picture, one of another size than the whole, no end.
std::string checked_gif(std::string s, const std::string& where) {
  const auto need = [&](size_t end) { require_input(end <= s.size(), "%s: truncated GIF: %d bytes", where, s.size()); };
  need(13);
  const auto table = [&](size_t flags) {  // bytes of a colour table
    return byte_at(s, flags) & 0x80 ? size_t{6} << (byte_at(s, flags) & 7) : 0;
  };
  size_t i = 13 + table(10);
  s[11] = 0;  // the background's index
  while (true) {
    need(i + 10);
    const uint32_t block = byte_at(s, i);
    require_input(block == 0x21 || block == 0x2c, "%s: damaged GIF: block 0x%02x at byte %d", where, block, i);
    if (block == 0x21 && byte_at(s, i + 1) == 0xf9) s[i + 3] = static_cast<char>(s[i + 3] & ~1);
    if (block == 0x2c) {
      require_input(s.compare(i + 1, 8, std::string(4, '\0') + s.substr(6, 4)) == 0,
                    "%s: GIF whose first picture does not fill it: convert it to PNG", where);
      i += 11 + table(i + 9);
    } else {
      i += 2;
    }
    for (need(i + 1); s[i] != 0; need(i + 1)) i += 1 + byte_at(s, i);  // data in pieces, each behind its length
    ++i;
    if (block == 0x2c) return s.substr(0, i) + ";";
  }
}

// An uncompressed BMP (BITMAPINFOHEADER and later, OS/2's BITMAPCOREHEADER): 1, 4 or 8 bits into a palette, or 24 or 32
// bits, whose fourth byte is dropped.
Image decode_bmp(const std::string& s, const std::string& where) {
  require_input(s.size() >= 54, "%s: truncated BMP: %d bytes", where, s.size());
  const size_t header = little32(s, 14);
  const bool core = header == 12;
  const auto side = [&](size_t i) { return int64_t{static_cast<int32_t>(little32(s, i))}; };
  const int64_t width = core ? int64_t{little16(s, 18)} : side(18), rows = core ? int64_t{little16(s, 20)} : side(22);
  const int64_t height = std::abs(rows);
  const size_t bits = little16(s, core ? 24 : 28), compression = core ? 0 : little32(s, 30);
  const std::string_view masks("\0\0\xff\0\0\xff\0\0\xff\0\0\0", 12);
  const bool plain = compression == 0 && (bits == 1 || bits == 4 || bits == 8 || bits == 24 || bits == 32);
  const bool masked = compression == 3 && bits == 32 && s.compare(54, 12, masks) == 0;
  require_input((core || header >= 40) && (plain || masked), "%s: BMP of a rare kind: convert it to PNG", where);
  require_size(width, height, where);
  const size_t entry = core ? 3 : 4, palette = 14 + header, begin = little32(s, 10);
  const size_t colors = palette < begin ? (begin - palette) / entry : 0;
  const size_t W = static_cast<size_t>(width), H = static_cast<size_t>(height), stride = (W * bits + 31) / 32 * 4;
  require_input(begin <= s.size() && stride * H <= s.size() - begin, "%s: truncated BMP: %d bytes", where, s.size());
  Image image{static_cast<int>(height), static_cast<int>(width), std::vector<uint8_t>(W * H * 3)};
  for (size_t y = 0; y < H; ++y) {
    const size_t row = begin + (rows < 0 ? y : H - 1 - y) * stride;
    for (size_t x = 0; x < W; ++x) {
      size_t at = row + x * (bits / 8);
      if (bits <= 8) {
        const size_t index = byte_at(s, row + x * bits / 8) >> (8 - bits - x * bits % 8) & ((1u << bits) - 1);
        require_input(index < colors, "%s: damaged BMP: colour %d of %d", where, index, colors);
        at = palette + index * entry;
      }
      for (size_t c = 0; c < 3; ++c) image.rgb[3 * (y * W + x) + c] = static_cast<uint8_t>(s[at + 2 - c]);
    }
  }
  return image;
}

// The name of a format that is not decoded here, by its first bytes; "" for any other.
std::string foreign_format(const std::string& s) {
  const auto has = [&](size_t at, std::string_view magic) {
    return s.size() >= at && s.compare(at, magic.size(), magic) == 0;
  };
  if (has(0, "RIFF") && has(8, "WEBP")) return "WebP";
  if (has(0, {"II*\0", 4}) || has(0, {"MM\0*", 4})) return "TIFF";
  if (has(4, "jP  \r\n") || has(0, "\xff\x4f\xff\x51")) return "JPEG 2000";
  if (has(4, "ftypavif") || has(4, "ftyphei") || has(4, "ftypmif1")) return "AVIF or HEIF";
  if (has(0, "\xff\x0a") || has(4, "JXL ")) return "JPEG XL";
  return "";
}

// stb's pixels, [height, width, channels].
template <class Sample>
struct Pixels {
  int height = 0, width = 0;
  std::unique_ptr<Sample, void (*)(void*)> data{nullptr, stbi_image_free};
  size_t count() const { return static_cast<size_t>(width) * static_cast<size_t>(height); }
};

template <class Sample>
Pixels<Sample> stb_pixels(const std::string& bytes, const std::string& where, int channels) {
  const auto* file = reinterpret_cast<const stbi_uc*>(bytes.data());
  const int size = static_cast<int>(bytes.size());
  Pixels<Sample> p;
  int stored = 0;
  const bool known = stbi_info_from_memory(file, size, &p.width, &p.height, &stored) != 0;
  require_input(known, "%s: cannot read the image header: %s", where, stbi_failure_reason());
  require_size(p.width, p.height, where);
  if constexpr (sizeof(Sample) == 1)
    p.data.reset(stbi_load_from_memory(file, size, &p.width, &p.height, &stored, channels));
  else
    p.data.reset(stbi_load_16_from_memory(file, size, &p.width, &p.height, &stored, channels));
  require_input(p.data != nullptr, "%s: cannot decode the image: %s", where, stbi_failure_reason());
  return p;
}

// PNG of 16-bit gray, which Pillow cuts off at 255 when it converts it to RGB; of other 16-bit samples it keeps the
// high byte.
Image decode_gray16(const std::string& bytes, const std::string& where) {
  const Pixels<stbi_us> gray = stb_pixels<stbi_us>(bytes, where, 1);
  Image image{gray.height, gray.width, {}};
  image.rgb.reserve(3 * gray.count());
  for (size_t i = 0; i < gray.count(); ++i)
    image.rgb.insert(image.rgb.end(), 3, static_cast<uint8_t>(std::min<unsigned>(gray.data.get()[i], 255)));
  return image;
}

Image decode_gif(const std::string& bytes, const std::string& where) {
  const Pixels<stbi_uc> rgba = stb_pixels<stbi_uc>(bytes, where, 4);
  Image image{rgba.height, rgba.width, std::vector<uint8_t>(3 * rgba.count())};
  for (size_t i = 0; i < rgba.count(); ++i) {
    const stbi_uc* pixel = rgba.data.get() + 4 * i;
    require_input(pixel[3] != 0, "%s: truncated GIF: no colour for pixel %d", where, i);
    std::copy_n(pixel, 3, &image.rgb[3 * i]);
  }
  return image;
}

}  // namespace

void require_size(int64_t width, int64_t height, const std::string& where) {
  require_input(width > 0 && height > 0 && width <= kMaxPixels / height,
                "%s: image of %d x %d pixels is empty or too large", where, width, height);
}

Image decode_with_stb(const std::string& bytes, const std::string& where) {
  const Pixels<stbi_uc> rgb = stb_pixels<stbi_uc>(bytes, where, 3);
  return {rgb.height, rgb.width, std::vector<uint8_t>(rgb.data.get(), rgb.data.get() + 3 * rgb.count())};
}

Image decode_image(const std::string& bytes, const std::string& where) {
  require_input(bytes.size() <= kMaxBytes, "%s: image file of %d bytes is too large", where, bytes.size());
  if (bytes.compare(0, kPngSignature.size(), kPngSignature) == 0) {
    const bool gray16 =
        bytes.size() > 26 && bytes.compare(24, 2, std::string_view("\x10\0", 2)) == 0;  // bit depth, colour type
    return gray16 ? decode_gray16(checked_png(bytes, where), where) : decode_with_stb(checked_png(bytes, where), where);
  }
  if (bytes.compare(0, 3, "\xff\xd8\xff") == 0) return decode_jpeg(bytes, where, check_jpeg(bytes, where));
  if (bytes.compare(0, 4, "GIF8") == 0) return decode_gif(checked_gif(bytes, where), where);
  if (bytes.compare(0, 2, "BM") == 0) return decode_bmp(bytes, where);
  const std::string format = foreign_format(bytes);
  require_input(format.empty(), "%s: a %s image: convert it (JPEG, PNG, GIF and BMP are read, whatever their names)",
                where, format);
  throw InputError(where + ": neither a JPEG nor a PNG, GIF or BMP image");
}

}  // namespace bcq
