// The JPEG decoder of this build, chosen by `make JPEG=`: jpeg_stb.cpp or jpeg_turbo.cpp.
//
// Decoders round differently, so a published accuracy belongs to one of them: nearly all were measured with
// libjpeg-turbo inside Pillow.
#pragma once
#include <cstdint>
#include <string>

#include "data/image/image.h"

namespace bcq {

const char* jpeg_decoder();  // "stb_image", "libjpeg-turbo 2.1.5"

// What the frame header and the markers before the data say.
struct JpegFrame {
  int components = 0;  // 0: no frame header
  bool arithmetic = false;
  bool inks_known = true;  // false for four components without Adobe's marker
  int64_t pixels = 0;
  int64_t least_bits = 0;  // Huffman coding needs more than these
};

// Bytes that start as a JPEG does and go on to its end-of-image marker. InputError naming `where`.
Image decode_jpeg(const std::string& bytes, const std::string& where, const JpegFrame& frame);

// What decode.cpp has for the decoders: PNG or JPEG through stb_image, and the limits of image.h.
Image decode_with_stb(const std::string& bytes, const std::string& where);
void require_size(int64_t width, int64_t height, const std::string& where);

}  // namespace bcq
