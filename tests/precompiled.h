// What most tests include, compiled once (the Makefile puts it before each of them).
#include <doctest/doctest.h>

#include "engine/file/json.h"
#include "tests/support.h"
