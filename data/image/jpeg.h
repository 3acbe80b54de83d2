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

// Bytes that start as a JPEG does and go on to its end-of-image marker. inks_known: false for four components without
// Adobe's marker. InputError naming `where`.
Image decode_jpeg(const std::string& bytes, const std::string& where, bool inks_known);

// What image.cpp has for the decoders: PNG or JPEG through stb_image, and the limits of image.h.
Image decode_with_stb(const std::string& bytes, const std::string& where);
void require_size(int64_t width, int64_t height, const std::string& where);

}  // namespace bcq
