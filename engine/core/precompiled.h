// What most files include of the standard library, compiled once; the Makefile puts it before each of those that
// compute. They include what they use as well: without it they compile the same.
#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>
