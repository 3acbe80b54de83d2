// Images: decoding, and the evaluation transform of the vision models.
//
// Resampling is Pillow's, bit for bit: separable, antialiased, 22-bit fixed point,
// horizontal then vertical, rounded to bytes after each pass. Accuracies published for
// these models were measured through it, and a float resampler moves pixels by a level.
// The order of the passes is that of Pillow before 13.0, which those measurements used; newer
// versions start with the height when it shrinks more than the width.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "engine/core/tensor.h"
#include "engine/file/json_fwd.h"

namespace bcq {

struct Image {
  int height = 0, width = 0;
  std::vector<uint8_t> rgb;  // [height, width, 3]

  // Where in rgb pixel (y, x) is.
  size_t at(int y, int x) const {
    return 3 * (static_cast<size_t>(y) * static_cast<size_t>(width) + static_cast<size_t>(x));
  }
};

// JPEG (see data/image/jpeg.h), PNG, GIF or BMP bytes to RGB as Pillow's convert("RGB") makes it, recognised by
// content. Gray is replicated, a palette looked up, alpha dropped without blending; 16-bit gray is cut off at 255,
// other 16-bit samples keep their high byte; of a GIF the first picture; EXIF orientation is not applied. A PNG may
// lack its end. InputError, naming `where`: another format (by its name where it is known), a damaged or truncated
// file, more than 178,956,970 pixels (Pillow's own limit), a JPEG of more pixels than its bytes can hold or of so many
// scans that decoding would take seconds.
Image decode_image(const std::string& bytes, const std::string& where);

// Part of an image on the pixel grid it would have after a resize.
struct Region {
  int top = 0, left = 0, height = 0, width = 0;
};

// Pillow's Image.resize((width, height), interpolation), and only the pixels of `window`
// of it (the whole result when the window is empty). interpolation: "bicubic" or
// "bilinear", else InputError. A window that sticks out is an Error.
Image resize(const Image& image, int height, int width, const std::string& interpolation, Region window = {});

// A picture resized and cut to height x width as the config says (engine/core/tensor.h). timm's rule: the short side
// becomes floor(size / crop_pct), the long side follows (truncated), and the centre is kept. A picture smaller than the
// crop is padded with zeros. Only square targets exist; InputError for others, for a crop_pct that is not in (0, 4],
// and for a picture that has another size where nothing is cut.
Image resize_and_crop(const Image& image, const ImageConfig& config);

// The rest of it: [3, H, W] float32, (x * rescale - mean) / std in float arithmetic, equal to torchvision's ToTensor
// and Normalize, and to transformers' rescale and normalize in numpy. InputError when a std is not positive.
Tensor normalise(const Image& crop, const ImageConfig& config);

// All of a config, for records and as a key of what was made by it.
json to_json(const ImageConfig& config);

// The whole transform.
Tensor preprocess(const Image& image, const ImageConfig& config);

}  // namespace bcq
