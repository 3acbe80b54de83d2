#include "eval/version.h"

namespace bcq {

const char* version() { return BCQ_VERSION; }

}  // namespace bcq
