#include "eval/manual.h"

#include <algorithm>
#include <cctype>

#include "quant/recipe.h"

namespace bcq {
namespace {

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

}  // namespace

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

}  // namespace bcq
