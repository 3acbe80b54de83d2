// What most tests include, compiled once (the Makefile puts it before each of them): half of what compiling them takes.
#include <doctest/doctest.h>

#include "engine/file/json.h"
#include "tests/support.h"
