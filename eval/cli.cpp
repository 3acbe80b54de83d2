#include "eval/cli.h"

#include <cblas.h>
#include <sys/resource.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cctype>
#include <charconv>
#include <cstdio>
#include <filesystem>
#include <iostream>
#include <new>

#include "data/image/jpeg.h"
#include "engine/core/parallel.h"
#include "engine/core/process.h"
#include "engine/core/ranks.h"
#include "engine/file/json.h"
#include "engine/kernels/kernels.h"

namespace bcq {

namespace {

std::string clock_text(double seconds) {
  const int s = static_cast<int>(seconds + 0.5);
  return s < 3600 ? format("%d:%02d", s / 60, s % 60) : format("%d:%02d:%02d", s / 3600, s / 60 % 60, s % 60);
}

// An OpenBLAS that is older than the processor falls back to kernels of 2005, several times slower.
void hint_at_slow_blas() {
  const std::string blas = openblas_get_corename(), isa = kernels().name;
  const bool old = blas == "Prescott" || blas == "Core2" || blas == "Penryn" || blas == "Nehalem" || blas == "Unknown";
  if (!old || isa == "plain" || rank() > 0) return;
  print(stderr,
        "note: OpenBLAS does not know this processor and runs its slow %s kernels; OPENBLAS_CORETYPE=%s is faster\n",
        blas, isa == "avx512" || isa == "amx" ? "SkylakeX" : "Haswell");
}

std::string full_version() {
  return format("bcq %s\ncompiler %s\nisa %s\nblas %s (%s)\njpeg %s\nmpi %s", version(), __VERSION__, kernels().name,
                openblas_get_config(), openblas_get_corename(), jpeg_decoder(), mpi_version());
}

// The number a text is, of the kind JSON has for it; the text itself where it is none.
json number_of(const std::string& text) {
  int64_t whole;
  double real;
  const char *begin = text.data(), *end = begin + text.size();
  if (const auto r = std::from_chars(begin, end, whole); r.ec == std::errc() && r.ptr == end) return whole;
  if (const auto r = std::from_chars(begin, end, real); r.ec == std::errc() && r.ptr == end) return real;
  return text;
}

std::string first_of(const std::string& flags) { return flags.substr(0, flags.find(',')); }

void flush_stdout() {
  require(std::cout.flush().good() && std::fflush(stdout) == 0, "cannot write to standard output");
}

// ---- What is made of the options besides --help ---------------------------------------------------------------------

// Text that roff shows as it is.
std::string roff(const std::string& text) {
  std::string safe;
  for (const char c : text) {
    if (c == '\\' || c == '-') safe += '\\';
    safe += c == '\\' ? "e" : std::string(1, c);
    if (c == '\n') safe += "\\&";  // no dot or quote begins a line
  }
  return safe;
}

std::string capitals(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) { return std::toupper(c); });
  return text;
}

// For man(1), in the roff macros of man(7). `examples` as --help shows them.
std::string man_page(const std::string& program, const std::string& description, const std::string& examples,
                     const std::vector<Arg>& args) {
  std::string page = ".TH " + capitals(program) + " 1 \"\" bcq bcq\n.SH NAME\n" + program + " \\- " +
                     roff(description) + "\n.SH SYNOPSIS\n.B " + program + "\n[OPTIONS]";
  std::vector<std::string> groups;
  for (const Arg& arg : args) {
    if (arg.flags[0] != '-') page += std::string(" [") + arg.type + "...]";
    if (std::find(groups.begin(), groups.end(), arg.group) == groups.end()) groups.push_back(arg.group);
  }
  page += "\n.SH OPTIONS\n";
  for (const std::string& group : groups) {
    page += ".SS " + roff(group) + "\n";
    for (const Arg& arg : args)
      if (arg.group == group)
        page += ".TP\n\\fB" + roff(arg.flags) + "\\fR" + (*arg.type ? " \\fI" + roff(arg.type) + "\\fR" : "") +
                "\n\\&" + roff(arg.help) + (arg.required ? " (required)" : "") + "\n";
  }
  return page + ".SH EXAMPLES\n.nf\n\\&" + roff(examples) + "\n.fi\n";
}

// A script for bash: names of options, the words an option takes ("{float,quantized}"), else file names.
std::string bash_completion(const std::string& program, const std::vector<Arg>& args) {
  std::string names, words;
  for (const Arg& arg : args) {
    std::string pattern;  // "--a|--b"
    for (const std::string& flag : split(arg.flags)) {
      if (flag[0] != '-') continue;
      names += (names.empty() ? "" : " ") + flag;
      pattern += (pattern.empty() ? "" : "|") + flag;
    }
    std::string choices = arg.type;
    if (choices.size() < 2 || choices.front() != '{' || pattern.empty()) continue;
    choices = choices.substr(1, choices.size() - 2);
    std::replace(choices.begin(), choices.end(), ',', ' ');
    words += "    " + pattern + ") COMPREPLY=($(compgen -W \"" + choices + "\" -- \"$word\")); return ;;\n";
  }
  return "_bcq_" + program + "() {\n  local word=${COMP_WORDS[COMP_CWORD]}\n  case ${COMP_WORDS[COMP_CWORD-1]} in\n" +
         words + "  esac\n  [[ $word == -* ]] && COMPREPLY=($(compgen -W \"" + names +
         "\" -- \"$word\"))\n}\ncomplete -o bashdefault -o default -F _bcq_" + program + " " + program + "\n";
}

}  // namespace

// ---- The command line -----------------------------------------------------------------------------------------------

struct CommandLine::Parser {
  CLI::App app;
  std::vector<std::string> required;
  std::vector<const std::string*> outputs;
  // Of the recipe: where it goes, what the command line says of it, the file it starts from.
  Recipe* recipe = nullptr;
  json given = json::object();
  std::string file;
  bool print_recipe = false, shares_work = false;
  int64_t threads = 0;    // where --threads says so
  std::vector<Arg> args;  // all that are offered

  Parser(const std::string& name, const std::string& description) : app(description, name) {}

  using Set = std::function<void(const std::vector<std::string>&)>;
  CLI::Option* add(const Arg& arg, const Set& set) {
    if (arg.required) required.push_back(first_of(arg.flags));
    args.push_back(arg);
    const CLI::callback_t take = [set](const std::vector<std::string>& texts) { return set(texts), true; };
    const std::string help = arg.help + (arg.required ? " (required)" : "");
    return app.add_option(arg.flags, take, help)->type_name(arg.type)->group(arg.group);
  }
  void add_flag(const Arg& arg, const std::function<void(bool)>& set) {
    args.push_back(arg);
    const std::function<void(int64_t)> count = [set](int64_t n) { set(n > 0); };
    app.add_flag_function(arg.flags, count, arg.help)->group(arg.group);
  }
  template <class T>
  CLI::Option* add_number(const Arg& arg, T& to, double min, double max) {
    const Set set = [flag = first_of(arg.flags), min, max, &to](const std::vector<std::string>& texts) {
      const json value = number_of(texts.at(0));
      const double x = value.is_number() ? value.get<double>() : NAN;
      require_usage(std::is_integral_v<T> ? value.is_number_integer() : std::isfinite(x), "%s %s: not a %s", flag,
                    texts[0], std::is_integral_v<T> ? "whole number" : "number");
      require_usage(x >= min && x <= max, "%s %s: it must be %.15g to %.15g", flag, texts[0], min, max);
      to = value.get<T>();
    };
    return add(arg, set)->default_str(json(to).dump());
  }
  void add_recipe_option(const Option& option) {
    const Arg arg{option.flags.c_str(), option.type.c_str(), option.help, option.group};
    if (option.type.empty()) return add_flag(arg, [this, key = option.key](bool on) { given[key] = on; });
    CLI::Option* o = add(arg, [this, &option](const std::vector<std::string>& texts) {
      given[option.key] = option.is_list ? json(texts) : option.is_text ? json(texts.at(0)) : number_of(texts.at(0));
    });
    if (option.is_list)
      o->expected(1)->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)->allow_extra_args(false);
    else
      o->default_str(defaults_of(option, recipe->family));
    if (option.implied) o->expected(0, 1)->default_str(option.implied);  // what CLI11 hands on when no value follows
  }
};

CommandLine::CommandLine(const std::string& name, const std::string& description, const std::string& examples)
    : parser_(std::make_unique<Parser>(name, description)) {
  CLI::App& app = parser_->app;
  // Functions, because naming the kernels may itself fail (BCQ_ISA), and all options are known when they run.
  const auto says = [&](const char* flag, const char* help, const std::function<std::string()>& text) {
    const std::function<void(int64_t)> say = [text](int64_t) { throw CLI::CallForVersion(text(), 0); };
    return app.add_flag_function(flag, say, help)->trigger_on_parse();
  };
  says("--version", "Version, compiler, kernels, BLAS, JPEG decoder", full_version);
  says("--man", "", [=, this] { return man_page(name, description, examples, parser_->args); })->group("");
  says("--completion", "", [=, this] { return bash_completion(name, parser_->args); })->group("");
  const Arg threads = {"--threads", "T",
                       "Threads (default: OMP_NUM_THREADS, else the cores this process may use, at most its cgroup's "
                       "CPU quota); results do not depend on it"};
  parser_->add_number(threads, parser_->threads, 1, kMostThreads)->default_str("");
  add({"--quiet,-q", "", "No progress and no warnings on standard error; records hold the warnings"},
      ProgressLine::quiet);
  app.get_formatter()->column_width(34);
  app.footer(examples);
}
CommandLine::~CommandLine() = default;

void CommandLine::add(const Arg& arg, std::string& to) {
  parser_->add(arg, [&to](const std::vector<std::string>& texts) { to = texts.at(0); })->default_str(to);
}
void CommandLine::add(const Arg& arg, std::vector<std::string>& to) {
  std::string defaults;
  for (const std::string& text : to) defaults += (defaults.empty() ? "" : ",") + text;
  parser_->add(arg, [&to](const std::vector<std::string>& texts) { to = texts; })
      ->expected(1, 1 << 20)
      ->allow_extra_args()  // of a positional one
      ->default_str(defaults);
}
void CommandLine::add(const Arg& arg, bool& to) {
  parser_->add_flag(arg, [&to](bool on) { to = on; });
}
void CommandLine::add(const Arg& arg, int64_t& to, double min, double max) { parser_->add_number(arg, to, min, max); }
void CommandLine::add(const Arg& arg, double& to, double min, double max) { parser_->add_number(arg, to, min, max); }
void CommandLine::add_model(std::string& to, const char* files) {
  const std::string help = format("Folder with %s, or the .safetensors file in it", files);
  add({"--model", "DIR|FILE", help, "Options", true}, to);
}
void CommandLine::add_output(const Arg& arg, std::string& to) {
  add(arg, to);
  parser_->outputs.push_back(&to);
}

void CommandLine::add_recipe(Recipe& to, bool of_cells) {
  parser_->recipe = &to;
  for (const Option& option : recipe_options(to.family))
    if (!of_cells || option.in_table != InTable::Keys) parser_->add_recipe_option(option);
  if (of_cells) return;
  add({"--recipe", "FILE", "Options from a JSON file: a recipe, or a result that has one; those given here win"},
      parser_->file);
  add({"--print-recipe", "", "Write the recipe of this command line as JSON, and end"}, parser_->print_recipe);
}

const json& CommandLine::given() const { return parser_->given; }

bool CommandLine::has(const std::string& flag) const { return parser_->app.count(flag) > 0; }

void CommandLine::parse(int argc, char** argv) {
  Parser& p = *parser_;
  p.app.parse(argc, argv);
  if (p.recipe) {
    const json file = p.file.empty() ? json::object() : recipe_in(p.file);
    *p.recipe = read_recipe(p.recipe->family, file, p.file, p.given);
  }
  if (p.print_recipe) throw CLI::CallForVersion(to_json(*p.recipe).dump(2), 0);
  for (const std::string& flag : p.required) require_usage(has(flag), "%s is required", flag);
  for (const std::string* path : p.outputs)
    if (rank() == 0) probe_output(*path);
  if (has("--threads"))
    set_threads(static_cast<int>(p.threads));
  else if (!std::getenv("OMP_NUM_THREADS"))
    set_threads(threads_of_rank(threads()));
  agree_on_threads();
}

void CommandLine::share_work() { parser_->shares_work = true; }

int CommandLine::run(int argc, char** argv, const std::function<void()>& body) {
  tune_process(argv);
  const std::string name = parser_->app.get_name();
  const auto failed = [&](int code, const std::string& message) {
    const auto say = [&] { print(stderr, "%s: %s%s\n", name, rank() > 0 ? format("rank %d: ", rank()) : "", message); };
    if (ranks() > 1) abandon_ranks(code, say);
    say();
    return code;
  };
  try {
    std::string facts =
        format("version %s, OpenBLAS %s, JPEG %s, options", version(), openblas_get_corename(), jpeg_decoder());
    for (int i = 1; i < argc; ++i) facts += std::string(" ") + argv[i];
    start_ranks(parser_->shares_work);
    require_same_in_ranks(facts);
    try {
      parse(argc, argv);
    } catch (const CLI::ParseError& e) {
      const int code = (rank() == 0 ? parser_->app.exit(e) : e.get_exit_code()) == 0 ? 0 : 2;
      if (code == 0) flush_stdout();
      end_ranks();
      return code;
    }
    ProgressLine::quiet |= rank() > 0;
    hint_at_slow_blas();
    body();
    flush_stdout();
    end_ranks();
    return 0;
  } catch (const UsageError& e) {
    return failed(2, std::string(e.what()) + " (see --help)");
  } catch (const InputError& e) {
    return failed(3, e.what());
  } catch (const json::exception& e) {
    return failed(3, std::string("a JSON file is not what it has to be: ") + e.what());
  } catch (const Incomplete& e) {  // in all ranks
    if (rank() == 0) print(stderr, "%s: %s\n", name, e.what());
    std::fflush(stdout);
    end_ranks();
    return 4;
  } catch (const std::bad_alloc&) {
    return failed(1, "out of memory");
  } catch (const std::exception& e) {
    return failed(1, e.what());
  }
}

void make_folder(const std::string& folder) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  require_usage(std::filesystem::is_directory(folder), "%s: cannot be made a folder: %s", folder,
                error ? error.message() : "it is something else");
  require(::access(folder.c_str(), W_OK | X_OK) == 0, "%s: nothing can be written into it", folder);
}

// ---- Progress -------------------------------------------------------------------------------------------------------

bool ProgressLine::quiet = false;

void ProgressLine::operator()(const std::string& what, double done, double total) {
  if (quiet || !isatty(2)) return;
  if (!open_ || what != what_) {
    finish();
    what_ = what;
    start_ = last_ = Timer();
    open_ = true;
  }
  if (last_.seconds() < 0.1) return;
  last_ = Timer();
  const bool known = done >= 0.01 * total && done > 0;  // the first per cent says little of the rest
  const double left = known ? start_.seconds() * (total - done) / done : 0;
  print(stderr, "\r\x1b[K%s%s: %.0f%%, %s left", prefix_, what, total > 0 ? 100 * done / total : 0.0,
        known ? clock_text(left).c_str() : "?");
}

void ProgressLine::finish() {
  if (open_) print(stderr, "\r\x1b[K");
  open_ = false;
}

void ProgressLine::warning(const std::string& message) {
  if (std::find(warnings_.begin(), warnings_.end(), message) != warnings_.end()) return;
  finish();
  if (!quiet) print(stderr, "%swarning: %s\n", prefix_, message);
  warnings_.push_back(message);
}

// ---- Records --------------------------------------------------------------------------------------------------------

json run_facts() {
  struct rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  json facts = {{"tool", "bcq"},
                {"version", version()},
                {"threads", threads()},
                {"isa", kernels().name},
                {"blas", std::string("OpenBLAS ") + openblas_get_corename()},
                {"peak_rss_mb", static_cast<double>(usage.ru_maxrss) / 1024}};
  if (ranks() > 1) {
    json received = json::object();
    for (const auto& [phase, bytes] : received_bytes()) received[phase] = static_cast<double>(bytes) / 1e6;
    facts["ranks"] = {{"count", ranks()}, {"received_mb", received}};
  }
  return facts;
}

void write_record(const std::string& path, const json& record) {
  if (rank() > 0) return;
  if (path == "-")
    std::cout << dump(record, 2) + "\n";
  else if (!path.empty())
    write_file(path, dump(record, 2) + "\n");
}

void warn_of_unread(const std::string& path, const std::string& method, const Warn& warn) {
  if (path.empty()) return;
  require_input(std::filesystem::exists(path), "%s: no such file or folder", path);
  warn(format("%s is not read: --method %s needs no data", path, method));
}

}  // namespace bcq
