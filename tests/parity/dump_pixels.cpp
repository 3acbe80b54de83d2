// dump_pixels STAGE SIZE CROP_PCT INTERPOLATION LIST OUT: pixels of the images named in the
// file LIST, one path a line. STAGE is decode (as stored), crop (resized and cropped bytes)
// or tensor (normalised float32 [3, H, W]). Per image OUT holds int32 height and width, then
// the values; all little-endian. "dump_pixels decoder" names the JPEG decoder. Called by image_parity.py.
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>

#include "data/image/image.h"
#include "data/image/jpeg.h"
#include "engine/core/check.h"
#include "engine/file/file.h"

namespace {

void run(char** argv) {
  const std::string stage = argv[1];
  bcq::require_usage(stage == "decode" || stage == "crop" || stage == "tensor", "unknown stage %s", argv[1]);
  bcq::ImageConfig config;
  config.height = config.width = std::atoi(argv[2]);
  config.crop_pct = std::atof(argv[3]);
  config.interpolation = argv[4];
  const float mean[3] = {0.485f, 0.456f, 0.406f}, std[3] = {0.229f, 0.224f, 0.225f};
  for (int c = 0; c < 3; ++c) config.mean[c] = mean[c], config.std[c] = std[c];
  std::ifstream list(argv[5]);
  std::ofstream out(argv[6], std::ios::binary);
  const auto write = [&out](const void* bytes, size_t n) {
    out.write(static_cast<const char*>(bytes), static_cast<std::streamsize>(n));
  };
  for (std::string path; std::getline(list, path);) {
    bcq::Image image = bcq::decode_image(bcq::read_file(path), path);
    const bcq::Tensor pixels = stage == "tensor" ? bcq::preprocess(image, config) : bcq::Tensor();
    if (stage != "decode") image = bcq::resize_and_crop(image, config);
    const int32_t size[2] = {image.height, image.width};
    write(size, sizeof size);
    if (stage == "tensor") {
      write(pixels.data, static_cast<size_t>(pixels.size()) * sizeof(float));
    } else {
      write(image.rgb.data(), image.rgb.size());
    }
  }
  bcq::require(static_cast<bool>(out.flush()), "%s: cannot write", argv[6]);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    if (argc == 2 && std::string(argv[1]) == "decoder") return std::puts(bcq::jpeg_decoder()) < 0;
    bcq::require_usage(argc == 7, "usage: dump_pixels STAGE SIZE CROP_PCT INTERPOLATION LIST OUT");
    run(argv);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "dump_pixels: %s\n", e.what());
    return 1;
  }
  return 0;
}
