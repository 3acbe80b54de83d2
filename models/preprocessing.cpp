// How a checkpoint's images become pixels: timm's pretrained_cfg, and the image processors of transformers; see timm.h.
#include <algorithm>
#include <filesystem>

#include "engine/core/check.h"
#include "engine/file/json.h"
#include "models/timm.h"

namespace bcq {
namespace {

// Three numbers, or one for all channels.
void read_channels(const ConfigReader& in, const char* key, double min, double max, float out[3]) {
  std::vector<double> values = in.numbers(key, min, max, {out[0], out[1], out[2]});
  if (values.size() == 1) values.resize(3, values[0]);
  if (values.size() != 3) in.refuse(key, "one number or three");
  for (size_t c = 0; c < 3; ++c) out[c] = static_cast<float>(values[c]);
}

void note_missing(const ConfigReader& in, const std::vector<const char*>& keys, Notes& notes,
                  const std::string& whose) {
  std::string missing;
  for (const char* key : keys)
    if (!in.has(key)) missing += (missing.empty() ? "" : ", ") + std::string(key);
  if (!missing.empty()) notes.push_back(in.where() + ": without " + missing + ": " + whose);
}

// ---- transformers ------------------------------------------------------------------------------

using Resize = ImageConfig::Resize;

constexpr float kHalf[] = {0.5f, 0.5f, 0.5f}, kClipMean[] = {0.48145466f, 0.4578275f, 0.40821073f},
                kClipStd[] = {0.26862954f, 0.26130258f, 0.27577711f};

// What an image processor does where its file says nothing (image_processing_*.py).
struct Processor {
  const char* name;
  Resize resize;
  int64_t size, crop_size;  // crop_size 0: cuts nothing
  int resample;             // as Pillow numbers its filters
  const float *mean, *std;
};
constexpr Processor kProcessors[] = {{"ViT", Resize::Exact, 224, 0, 2, kHalf, kHalf},
                                     {"DeiT", Resize::Exact, 256, 224, 3, kHalf, kHalf},
                                     {"CLIP", Resize::Shortest, 224, 224, 3, kClipMean, kClipStd},
                                     {"Bit", Resize::Shortest, 224, 224, 3, kClipMean, kClipStd}};

// "ViTImageProcessorFast", "DeiTFeatureExtractor" and the like.
const Processor& processor_of(const ConfigReader& in, const std::string& model_type) {
  const char* key = in.has("image_processor_type") ? "image_processor_type" : "feature_extractor_type";
  const std::string fallback = model_type == "deit"                 ? "DeiTImageProcessor"
                               : model_type.rfind("dinov2", 0) == 0 ? "BitImageProcessor"
                                                                    : "ViTImageProcessor";
  const std::string name = in.text(key, fallback);
  for (const Processor& p : kProcessors)
    for (const char* form : {"ImageProcessor", "ImageProcessorFast", "ImageProcessorPil", "FeatureExtractor"})
      if (name == p.name + std::string(form)) return p;
  in.refuse(key, "an image processor of ViT, DeiT, CLIP or Bit");
}

// The sides of a "crop_size": a number, a list [height, width] or an object.
void read_sides(const ConfigReader& in, const char* key, int64_t sides[2]) {
  const json& value = in.value(key);
  if (value.is_object()) {
    const ConfigReader size = in.object(key);
    sides[0] = size.integer({"height"}, kSide);
    sides[1] = size.integer({"width"}, kSide);
    size.require_known();
  } else if (value.is_array()) {
    const std::vector<int64_t> both = in.integers(key, kSide, {});
    if (both.size() != 2) in.refuse(key, "a number, two, or an object");
    std::copy_n(both.begin(), 2, sides);
  } else {
    sides[0] = sides[1] = in.integer({key}, kSide, sides[0]);
  }
}

// "size" in all its forms (image_processing_utils.py, get_size_dict, and PilBackend.resize). A number is the side of a
// square, or the shorter side.
void read_size(const ConfigReader& in, bool to_square, ImageConfig& image) {
  const json& value = in.value("size");
  if (value.is_null()) return;
  int64_t* to = image.resize_to;
  image.resize = value.is_number() && !to_square ? Resize::Shortest : Resize::Exact;
  if (value.is_object() && (value.contains("shortest_edge") || value.contains("max_height"))) {
    const ConfigReader size = in.object("size");
    const bool within = size.has("max_height");
    image.resize = within ? Resize::Within : Resize::Shortest;
    to[0] = size.integer({within ? "max_height" : "shortest_edge"}, kSide);
    to[1] = within ? size.integer({"max_width"}, kSide) : size.integer({"longest_edge"}, {1, 1 << 20}, 0);
    size.require_known();
  } else {
    read_sides(in, "size", to);
    if (image.resize == Resize::Shortest) to[1] = 0;
  }
}

const char* interpolation_of(const ConfigReader& in, int fallback) {
  const int64_t resample = in.integer({"resample"}, {0, 5}, fallback);
  if (resample != 2 && resample != 3) in.refuse("resample", "2 (bilinear) or 3 (bicubic): others are not supported");
  return resample == 2 ? "bilinear" : "bicubic";
}

}  // namespace

ImageConfig timm_preprocessing(const ConfigReader& in, int64_t side, Notes& notes) {
  ImageConfig image;
  const std::vector<int64_t> whole = {3, side, side}, size = in.integers("input_size", kSide, whole),
                             test = in.integers("test_input_size", kSide, size);
  if (size.size() != 3) in.refuse("input_size", "[3, height, width]");
  if (test != whole && size != whole)
    in.refuse("input_size", format("[3, %d, %d], which is what the network takes", side, side));
  image.height = image.width = side;
  image.crop_pct = in.number("crop_pct", 1e-3, 1, image.crop_pct);
  const double test_crop = in.number("test_crop_pct", 1e-3, 1, image.crop_pct);
  if (test == whole)
    image.crop_pct = test_crop;
  else
    notes.push_back(format("%s: test_input_size is %s, but the network takes %d x %d: crop_pct of input_size",
                           in.where(), to_string(test), side, side));
  image.interpolation = in.text("interpolation", image.interpolation);
  if (image.interpolation != "bicubic" && image.interpolation != "bilinear")
    in.refuse("interpolation", "\"bicubic\" or \"bilinear\": others are not supported");
  image.crop_mode = in.text("crop_mode", image.crop_mode);
  if (image.crop_mode != "center" && image.crop_mode != "squash")
    in.refuse("crop_mode", "\"center\" or \"squash\": others are not supported");
  read_channels(in, "mean", -1e3, 1e3, image.mean);
  read_channels(in, "std", 1e-6, 1e6, image.std);
  note_missing(in, {"input_size", "crop_pct", "interpolation", "mean", "std"}, notes,
               "the network's size, and timm's defaults (crop_pct 0.875, bicubic, ImageNet's mean and std)");
  return image;
}

ImageConfig transformers_preprocessing(const std::string& folder, const std::string& model_type, int64_t side,
                                       Notes& notes, bool any_side) {
  const std::string path = (std::filesystem::path(folder) / "preprocessor_config.json").string();
  const bool is_there = std::filesystem::exists(path);
  const json tree = is_there ? read_json(path) : json::object();
  const ConfigReader in(tree, path);
  const Processor& p = processor_of(in, model_type);
  in.ignore({"image_processor_type", "feature_extractor_type", "processor_class", "auto_map", "_valid_processor_keys",
             "do_convert_rgb", "return_tensors", "device", "disable_grouping", "image_seq_length", "input_data_format",
             "do_reduce_labels", "reduce_labels", "pad_size"});
  in.only({{"num_channels", "3"},
           {"data_format", "null|\"channels_first\""},
           {"do_pad", "null|false"},
           {"crop_pct", "null"},
           {"max_size", "null"},
           {"do_flip_channel_order", "null|false"}});

  ImageConfig image;
  image.height = image.width = side;
  image.resize = p.resize;
  // Without a file the sizes are those of this network; 256 of 224 pixels are 8 of 7.
  const int64_t native = p.crop_size ? p.crop_size : p.size;
  image.resize_to[0] = image.resize_to[1] = is_there ? p.size : (p.size * side + native / 2) / native;
  if (p.resize == Resize::Shortest) image.resize_to[1] = 0;
  read_size(in, in.flag("default_to_square", p.resize == Resize::Exact), image);
  if (!in.flag("do_resize", true)) image.resize = Resize::None;
  image.interpolation = interpolation_of(in, p.resample);

  const bool crops = in.flag("do_center_crop", p.crop_size != 0);
  if (crops && p.crop_size == 0 && !in.has("crop_size")) in.refuse("crop_size", "there, as do_center_crop is true");
  int64_t kept[2] = {is_there ? p.crop_size : side, is_there ? p.crop_size : side};
  read_sides(in, "crop_size", kept);
  if (!crops) std::copy_n(image.resize_to, 2, kept);
  if (any_side && kept[0] == kept[1] && (crops || image.resize == Resize::Exact))
    image.height = image.width = side = kept[0];
  image.crop = crops ? ImageConfig::Crop::Transformers : ImageConfig::Crop::None;
  require_input((!crops && image.resize != Resize::Exact) || (kept[0] == side && kept[1] == side),
                "%s: %s makes images of %d x %d pixels, but the network takes %d x %d", path,
                crops ? "crop_size" : "size", kept[0], kept[1], side, side);

  image.rescale = in.number("rescale_factor", 0, 1e6, image.rescale);
  if (!in.flag("do_rescale", true)) image.rescale = 1;
  std::copy_n(p.mean, 3, image.mean);
  std::copy_n(p.std, 3, image.std);
  read_channels(in, "image_mean", -1e6, 1e6, image.mean);
  read_channels(in, "image_std", 1e-6, 1e6, image.std);
  if (!in.flag("do_normalize", true)) {
    std::fill_n(image.mean, 3, 0.f);
    std::fill_n(image.std, 3, 1.f);
  }
  in.require_known();
  const std::string whose = std::string("the defaults of transformers' ") + p.name + "ImageProcessor";
  std::vector<const char*> keys = {"size", "resample", "image_mean", "image_std"};
  if (crops) keys.push_back("crop_size");
  if (!is_there)
    notes.push_back(path + " is missing: " + whose + format(", at %d pixels", side));
  else
    note_missing(in, keys, notes, whose);
  return image;
}

}  // namespace bcq
