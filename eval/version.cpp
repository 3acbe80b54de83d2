#include "eval/run.h"

namespace bcq {

const char* version() { return BCQ_VERSION; }

}  // namespace bcq
