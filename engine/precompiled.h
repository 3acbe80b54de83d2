// The same of files that read and write.
#include <filesystem>
#include <nlohmann/json.hpp>

#include "engine/core/precompiled.h"
