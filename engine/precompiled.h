// Headers that files that read and write include, compiled once (engine/core/precompiled.h).
#include <filesystem>
#include <nlohmann/json.hpp>

#include "engine/core/precompiled.h"
