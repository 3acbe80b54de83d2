// What files that read and write include of other libraries, compiled once; the Makefile puts it before each of them.
// They include what they use as well: without it they compile the same.
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>
