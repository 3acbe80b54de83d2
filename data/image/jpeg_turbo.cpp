// make JPEG=turbo: JPEG as Pillow decodes it, through libjpeg-turbo's defaults (accurate integer DCT, "fancy"
// upsampling) and Pillow's conversion of inks. Pillow goes on where entropy-coded data is damaged and leaves gray
// areas; that is an error here, as with stb_image.
#include <csetjmp>
#include <cstdio>  // jpeglib.h needs it
// clang-format off
#include <jpeglib.h>
#include <jerror.h>
// clang-format on

#include "data/image/jpeg.h"
#include "engine/core/check.h"

#ifndef LIBJPEG_TURBO_VERSION
#error "JPEG=turbo needs libjpeg-turbo's jpeglib.h: other libraries of this name decode differently"
#endif

namespace bcq {
namespace {

// Everything that lives across the library's calls. Its errors come as longjmp, which must not pass over an object with
// a destructor: the functions that call setjmp hold none, and this one's destructor runs in their caller.
struct Decoder {
  jpeg_decompress_struct state = {};
  jpeg_error_mgr errors;
  std::jmp_buf failed;
  char message[JMSG_LENGTH_MAX];

  Decoder() {
    state.err = jpeg_std_error(&errors);
    state.client_data = this;
    errors.error_exit = [](j_common_ptr c) {
      auto* self = static_cast<Decoder*>(c->client_data);
      self->errors.format_message(c, self->message);
      std::longjmp(self->failed, 1);
    };
    // Warnings (negative levels) that mean pixels would be made up; the others are about markers.
    errors.emit_message = [](j_common_ptr c, int level) {
      const int code = c->err->msg_code;
      const bool invented = code == JWRN_HUFF_BAD_CODE || code == JWRN_ARITH_BAD_CODE || code == JWRN_HIT_MARKER ||
                            code == JWRN_MUST_RESYNC || code == JWRN_JPEG_EOF;
      if (level < 0 && invented) c->err->error_exit(c);
    };
  }
  Decoder(const Decoder&) = delete;
  ~Decoder() { jpeg_destroy_decompress(&state); }
};

// False with d.message set when the library gives up.
bool read_header(Decoder& d, const unsigned char* bytes, size_t size) {
  if (setjmp(d.failed)) return false;
  jpeg_create_decompress(&d.state);
  jpeg_mem_src(&d.state, bytes, size);
  jpeg_read_header(&d.state, TRUE);
  d.state.out_color_space = d.state.num_components == 4 ? JCS_CMYK : JCS_RGB;  // YCCK becomes CMYK, gray is replicated
  jpeg_calc_output_dimensions(&d.state);
  return true;
}

// All rows, [output_height, output_width, output_components].
bool read_rows(Decoder& d, unsigned char* out) {
  if (setjmp(d.failed)) return false;
  jpeg_start_decompress(&d.state);
  const size_t stride = size_t{d.state.output_width} * static_cast<size_t>(d.state.output_components);
  while (d.state.output_scanline < d.state.output_height) {
    JSAMPROW row = out + d.state.output_scanline * stride;
    jpeg_read_scanlines(&d.state, &row, 1);
  }
  jpeg_finish_decompress(&d.state);
  return true;
}

#define TEXT_OF(x) #x
#define TEXT(x) TEXT_OF(x)

}  // namespace

const char* jpeg_decoder() { return "libjpeg-turbo " TEXT(LIBJPEG_TURBO_VERSION); }

Image decode_jpeg(const std::string& bytes, const std::string& where, const JpegFrame&) {
  Decoder d;
  const bool known = read_header(d, reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size());
  require_input(known, "%s: cannot read the image header: %s", where, d.message);
  require_size(d.state.output_width, d.state.output_height, where);
  const int components = d.state.num_components;
  require_input(components == 1 || components == 3 || components == 4, "%s: JPEG of %d components", where, components);
  Image image{static_cast<int>(d.state.output_height), static_cast<int>(d.state.output_width), {}};
  const size_t count = size_t{d.state.output_width} * d.state.output_height;
  image.rgb.resize(count * static_cast<size_t>(d.state.output_components));
  require_input(read_rows(d, image.rgb.data()), "%s: cannot decode the image: %s", where, d.message);
  if (components == 4) {
    // Pillow takes all inks as Adobe stores them, inverted: with c, m, y and k as stored, red is k - (255 - c) k / 255,
    // the product divided with rounding.
    for (size_t i = 0; i < count; ++i) {
      const unsigned char* ink = &image.rgb[4 * i];
      const int k = ink[3];
      for (size_t c = 0; c < 3; ++c) {
        const int product = (255 - ink[c]) * k + 128;
        image.rgb[3 * i + c] = static_cast<uint8_t>(k - (product + (product >> 8)) / 256);
      }
    }
    image.rgb.resize(count * 3);
  }
  return image;
}

}  // namespace bcq
