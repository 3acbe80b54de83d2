// classify: what a vision model, in float or saved quantized, sees on pictures.
#include <algorithm>
#include <filesystem>
#include <iostream>
#include <iterator>
#include <numeric>

#include "data/image/image.h"
#include "data/image/image_folder.h"
#include "engine/core/check.h"
#include "engine/core/timer.h"
#include "engine/file/file.h"
#include "engine/file/json.h"
#include "engine/nn/ops.h"
#include "eval/cli.h"
#include "eval/page.h"
#include "eval/vision.h"

namespace {

using namespace bcq;

struct Options {
  std::string model, beside, json_path, html;
  std::vector<std::string> images;
  int64_t top = 5;
  bool integer = false;
};

struct Classifier {
  std::unique_ptr<Model> model;
  Recipe recipe;
  std::string title;  // "vit W4A4"

  Classifier(const std::string& path, bool integer) : model(load_model(path)), recipe(recipe_of(Family::Vision)) {
    const ModelInfo& info = model->info();
    require_usage(info.family == Family::Vision, "%s is a language model: use generate", info.name);
    require_usage(info.outputs > 0, "%s has no classifier: its outputs are features", info.name);
    recipe.integer = integer && info.packed;
    set_stored_vision(*model, recipe);
    if (recipe.integer) prepare_runtime(*model, recipe);
    if (!info.packed) model->make_panels();
    title = info.name + (info.packed ? format(" W%dA%d", recipe.ptq.wbits, recipe.ptq.abits) : " float");
  }

  // The model's own label, or ImageNet's where it has its 1000 classes, by number or by synset.
  std::string name_of(int64_t c) const {
    const ModelInfo& info = model->info();
    if (info.labels.empty())
      return info.outputs == kImageNetClasses ? imagenet_name(static_cast<int>(c)) : "class " + std::to_string(c);
    const std::string& label = info.labels[at(c)];
    const int synset = synset_label(label);
    return synset < 0 ? label : imagenet_name(synset);
  }
};

// The picture's likeliest classes, the first first, as JSON: "class", "name", "probability"; and "seconds".
json classify(const Classifier& by, const Image& image, int64_t top) {
  const Timer timer;
  const Tensor pixels = preprocess(image, by.model->info().image);
  const Batch batch{.pixels = pixels.reshaped({1, 3, pixels.dim(1), pixels.dim(2)})};
  const Tensor logits = by.model->forward({precision_of(by.recipe)}, batch);
  const double seconds = timer.seconds();
  const int64_t classes = logits.dim(-1);
  const Tensor probabilities = softmax(nullptr, logits);
  std::vector<int64_t> order(static_cast<size_t>(classes));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return logits[a] > logits[b]; });
  json found = json::array();
  for (int64_t k = 0; k < std::min(top, classes); ++k) {
    const int64_t c = order[at(k)];
    found.push_back({{"class", c}, {"name", by.name_of(c)}, {"probability", probabilities[c]}});
  }
  return {{"model", by.title}, {"classes", found}, {"seconds", seconds}};
}

std::string bars(const json& result, bool second) {
  std::string html = "<div class=\"classes\"><h3>" + html_text(result["model"]) +
                     format(" <span class=\"dim\">%.0f ms</span></h3>", 1000 * result["seconds"].get<double>());
  for (const json& found : result["classes"]) {
    const double percent = 100 * found["probability"].get<double>();
    html += "<div class=\"row\"><span>" + format("%.1f %%", percent) + "</span>" + html_text(found["name"]) +
            "<div class=\"bar" + (second ? " second" : "") +
            format("\"><div style=\"width:%.2f%%\"></div></div></div>\n", percent);
  }
  return html + "</div>";
}

// Files, folders and archives as they are given, "-" for a picture on standard input.
std::vector<ImageFolder::Item> items_of(const std::vector<std::string>& paths) {
  std::vector<ImageFolder::Item> items;
  for (const std::string& path : paths) {
    const bool listed = std::filesystem::is_directory(path) || std::filesystem::path(path).extension() == ".tar";
    if (!listed) {
      items.push_back({path, 0, nullptr, 0, 0});
      continue;
    }
    const std::vector<ImageFolder::Item> inside = list_images(path).items;
    items.insert(items.end(), inside.begin(), inside.end());
  }
  return items;
}

void run(const Options& o) {
  std::vector<Classifier> models;
  models.emplace_back(o.model, o.integer);
  require_usage(!o.integer || models[0].model->info().packed, "--integer needs a model that was saved quantized");
  if (!o.beside.empty()) models.emplace_back(o.beside, o.integer);
  json records = json::array();
  std::string body;
  std::vector<std::string> unreadable;
  const std::vector<ImageFolder::Item> items = items_of(o.images);
  for (const ImageFolder::Item& item : items) {
    Image image;
    std::string bytes;
    try {
      bytes = item.path == "-" ? std::string(std::istreambuf_iterator<char>(std::cin), {}) : read_item(item);
      image = decode_image(bytes, item.path == "-" ? "standard input" : item.path);
    } catch (const InputError& e) {
      if (items.size() == 1) throw;
      print(stderr, "unreadable: %s\n", e.what());
      unreadable.push_back(item.path);
      continue;
    }
    json record = {{"image", item.path}, {"results", json::array()}};
    if (o.json_path != "-") print("%s\n", item.path);
    if (!o.html.empty())
      body += "<div class=\"card\"><div><img alt=\"\" src=\"" + image_uri(bytes) + "\"><div class=\"dim\">" +
              html_text(std::filesystem::path(item.path).filename().string()) + "</div></div>\n";
    for (size_t m = 0; m < models.size(); ++m) {
      const json result = classify(models[m], image, o.top);
      if (!o.html.empty()) body += bars(result, m > 0);
      record["results"].push_back(result);
      if (o.json_path == "-") continue;
      if (models.size() > 1) print("  %s\n", models[m].title);
      for (const json& found : result["classes"])
        print("  %6.2f %%  %s\n", 100 * found["probability"].get<double>(), found["name"].get<std::string>());
    }
    if (!o.html.empty()) body += "</div>\n";
    records.push_back(record);
  }
  json all = run_facts();
  all["images"] = records;
  write_record(o.json_path, all);
  if (!o.html.empty())
    write_file(o.html, html_page("classify", "<h1>" + html_text(models[0].title) + "</h1>\n" + body));
  if (!unreadable.empty())
    throw Incomplete(format("%d of %d pictures could not be read", unreadable.size(), items.size()));
}

}  // namespace

int main(int argc, char** argv) {
  CommandLine line("classify", "What a vision model, in float or saved quantized, sees on pictures.",
                   "Examples:\n"
                   "  classify --model data/mini/vit data/mini/images/val/9_ankle_boot\n"
                   "  classify --model vit-4bit --beside data/mini/vit --html page.html photo.jpg\n"
                   "  curl ... | classify --model vit_base_patch16_224 - --json -");
  Options o;
  line.add_model(o.model);
  line.add({"images", "IMAGE", "Pictures, folders or archives of them; -: one from standard input"}, o.images);
  line.add({"--beside", "DIR|FILE", "Another model, such as the float one: its classes stand beside"}, o.beside);
  line.add({"--top", "K", "Classes to show"}, o.top, 1, 1 << 20);
  line.add({"--integer", "", "Run a saved quantized model from 8-bit codes with exact sums"}, o.integer);
  line.add_output({"--json", "FILE", "Write the classes as JSON (-: stdout, which then has nothing else)"},
                  o.json_path);
  line.add_output({"--html", "FILE", "Write a page with the pictures and bars"}, o.html);
  return line.run(argc, argv, [&] {
    require_usage(!o.images.empty(), "no pictures: give files, folders or -");
    run(o);
  });
}
