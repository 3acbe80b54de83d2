// What a vision model, in float or as it was saved quantized, sees on a picture: its likeliest classes.
//   classify MODEL IMAGE
#include <algorithm>
#include <numeric>

#include "data/image/image.h"
#include "engine/core/check.h"
#include "engine/core/process.h"
#include "engine/file/file.h"
#include "engine/nn/ops.h"
#include "models/model.h"

using namespace bcq;

namespace {

void run(const std::string& path, const std::string& picture) {
  const auto model = load_model(path);
  const ModelInfo& info = model->info();
  require_usage(info.family == Family::Vision && info.outputs > 0, "%s is no classifier of pictures", info.name);

  // Resized, cropped and normalised as the checkpoint's own configuration says.
  const Tensor pixels = preprocess(decode_image(read_file(picture), picture), info.image);
  const Batch batch{.pixels = pixels.reshaped({1, 3, pixels.dim(1), pixels.dim(2)})};
  // Precision::Fake: as quantized, where it is; a model in float has nothing to round.
  const Tensor probabilities = softmax(nullptr, model->forward({Precision::Fake}, batch));

  std::vector<size_t> order(static_cast<size_t>(info.outputs));
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(),
            [&](size_t a, size_t b) { return probabilities.data[a] > probabilities.data[b]; });
  order.resize(std::min<size_t>(5, order.size()));
  for (const size_t c : order)
    print("%6.2f %%  %s\n", 100.0 * probabilities.data[c],
          info.labels.empty() ? "class " + std::to_string(c) : info.labels[c]);
}

}  // namespace

int main(int argc, char** argv) {
  tune_process();
  try {
    require_usage(argc == 3, "classify MODEL IMAGE");
    run(argv[1], argv[2]);
  } catch (const std::exception& e) {
    print(stderr, "error: %s\n", e.what());
    return 1;
  }
}
