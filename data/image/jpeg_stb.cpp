// make JPEG=stb, the default: JPEG through stb_image, within a few levels of libjpeg.
#include "data/image/jpeg.h"
#include "engine/core/check.h"

namespace bcq {

const char* jpeg_decoder() { return "stb_image"; }

Image decode_jpeg(const std::string& bytes, const std::string& where, bool inks_known) {
  // stb would take the inks as plain CMYK; most such files are Adobe's and inverted.
  require_input(inks_known, "%s: four-component JPEG without an Adobe marker", where.c_str());
  return decode_with_stb(bytes, where);
}

}  // namespace bcq
