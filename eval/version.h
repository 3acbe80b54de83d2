#pragma once

namespace bcq {

const char* version();  // git describe of the sources

}  // namespace bcq
