// make JPEG=stb, the default: JPEG through stb_image, within a few levels of libjpeg.
#include "data/image/jpeg.h"
#include "engine/core/check.h"

namespace bcq {

const char* jpeg_decoder() { return "stb_image"; }

Image decode_jpeg(const std::string& bytes, const std::string& where, const JpegFrame& frame) {
  require_input(!frame.arithmetic, "%s: arithmetic-coded JPEG: build with JPEG=turbo to decode it", where);
  // stb would take the inks as plain CMYK; most such files are Adobe's and inverted.
  require_input(frame.inks_known, "%s: four-component JPEG without an Adobe marker", where);
  return decode_with_stb(bytes, where);
}

}  // namespace bcq
