// Vision Transformer and DeiT as timm defines them (vision_transformer.py, deit.py; "An Image is Worth
// 16x16 Words", "Training data-efficient image transformers & distillation through attention"): class
// token, learned positions, pre-norm blocks, no pooling; the distilled form has a second token and head.
// Refuses what would need another forward pass: average pooling, LayerScale, register tokens, qk-norm.
#pragma once
#include "models/timm.h"

namespace bcq {

// Throws InputError.
std::unique_ptr<Model> load_vit(const VisionSource& source, const SafeTensors& file, ModelInfo info);

}  // namespace bcq
