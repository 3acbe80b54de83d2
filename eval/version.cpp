#include "eval/cli.h"

namespace bcq {

const char* version() { return BCQ_VERSION; }

}  // namespace bcq
