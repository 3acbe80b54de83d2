// How a checkpoint's images become pixels: timm's pretrained_cfg, and the image processors of transformers. Every key
// is obeyed or refused; what is missing has the default its library documents, and a note says so.
#pragma once
#include <string>
#include <vector>

#include "engine/core/tensor.h"
#include "engine/file/config.h"

namespace bcq {

constexpr Range kSide = {1, 8192};       // pixels
using Notes = std::vector<std::string>;  // what a person should know of how a model was read

// timm's rule (data/config.py, resolve_data_config with the test sizes, as validate.py has it) for a network that takes
// side x side pixels. InputError, naming file and key, for what cannot be obeyed.
ImageConfig timm_preprocessing(const ConfigReader& pretrained, int64_t side, Notes& notes);

// preprocessor_config.json in `folder`, as transformers' image processor of that name does it in numpy and Pillow;
// without the file the defaults of model_type ("vit", "deit", "swin", "dinov2"), at the network's size. Images of
// another size than `side` are an InputError, unless the network takes squares of any size.
ImageConfig transformers_preprocessing(const std::string& folder, const std::string& model_type, int64_t side,
                                       Notes& notes, bool any_side = false);

}  // namespace bcq
