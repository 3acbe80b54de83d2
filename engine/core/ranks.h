// Ranks: the processes of one run, on one machine or on many, that share out its work (make MPI=1).
//
// Every rank goes through the whole program with the same model and the same options. Work that takes long is cut into
// pieces by the data alone; a piece is made by one rank, and what was made is given to all of them, which use it in the
// order of the pieces. So results depend neither on the number of ranks nor on which of them was faster. The first rank
// alone prints and writes: nobody sees what others print.
#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "engine/core/tensor.h"

namespace bcq {

int rank();   // of this process, from 0
int ranks();  // of the run; 1 in a build without MPI, and where it was not started by mpirun or srun

std::string mpi_version();  // "Open MPI v4.1.4", or "none"

// To be called once, at the start of a program. UsageError where the run has several ranks and the build no MPI, or the
// program does not share out its work.
void start_ranks(bool shares_work);
// What results depend on has to be the same in all ranks: UsageError naming two that differ.
void require_same_in_ranks(const std::string& facts);
// In the end of a program; waits for the others.
void end_ranks();
// Of several ranks: the end of this one and of all others, with this exit code. Ranks but the first wait a moment
// before they say why, for mostly all of them fail by the same.
[[noreturn]] void abandon_ranks(int code, const std::function<void()>& say);

// Threads of one rank where nothing else is said: `all`, shared with ranks of this machine that may use the same cores.
int threads_of_rank(int all);
// The most threads any rank has, as of the last agree_on_threads(): all ranks go in rounds of one size.
int most_threads();
void agree_on_threads();

// While one of these lives, this process works for itself: rank 0 of 1.
struct Alone {
  Alone();
  ~Alone();
  Alone(const Alone&) = delete;
};

void wait_for_ranks();  // until all are here

// Rank `from` gives n bytes to all others.
void broadcast(void* bytes, int64_t n, int from);

// While one of these lives, bytes that this rank receives are counted under its name; others under "evaluation".
struct ReceivedFor {
  explicit ReceivedFor(std::string name);
  ~ReceivedFor();
  ReceivedFor(const ReceivedFor&) = delete;

 private:
  std::string before_;
};
const std::map<std::string, int64_t>& received_bytes();

// copy(address, bytes) of all there is in x, to or from another process of the same program on the same kind of
// machine; of a container or a tensor first its size, which makes room in one that is as constructed. A type of several
// fields lists them once, for both directions: void fields(auto visit) { visit(a, b, c); }
template <class T, class Copy>
void visit_bytes(T& x, const Copy& copy) {
  if constexpr (std::is_trivially_copyable_v<T>) {
    copy(&x, sizeof x);
  } else if constexpr (std::is_same_v<T, Tensor>) {
    bool has_values = !x.empty();
    copy(&has_values, sizeof has_values);
    visit_bytes(x.shape, copy);
    if (has_values && x.empty()) x = Tensor::uninitialized(x.shape);
    if (has_values) copy(x.data, 4 * x.size());
  } else if constexpr (requires { x.fields([](auto&...) {}); }) {
    x.fields([&](auto&... field) { (visit_bytes(field, copy), ...); });
  } else if constexpr (requires { x.first; }) {  // std::pair
    visit_bytes(x.first, copy);
    visit_bytes(x.second, copy);
  } else if constexpr (requires { x.index(); }) {  // std::variant
    size_t type = x.index();
    copy(&type, sizeof type);
    [&]<class... Types>(std::variant<Types...>& v) {
      const std::variant<Types...> of_types[] = {Types{}...};
      if (type != v.index()) v = of_types[type];
    }(x);
    std::visit([&](auto& value) { visit_bytes(value, copy); }, x);
  } else if constexpr (requires { typename T::mapped_type; }) {  // std::map
    std::vector<std::pair<typename T::key_type, typename T::mapped_type>> items(x.begin(), x.end());
    visit_bytes(items, copy);
    x = T(items.begin(), items.end());
  } else {  // std::vector, std::string
    size_t n = x.size();
    copy(&n, sizeof n);
    x.resize(n);
    if constexpr (std::is_trivially_copyable_v<typename T::value_type>) {
      if (n > 0) copy(x.data(), static_cast<int64_t>(n * sizeof x[0]));
    } else {
      for (auto& item : x) visit_bytes(item, copy);
    }
  }
}

// x as rank `from` has it, in all of them. In others it is as constructed before.
template <class T>
void share(T& x, int from) {
  if (ranks() > 1) visit_bytes(x, [&](void* bytes, int64_t n) { broadcast(bytes, n, from); });
}

// use(i, make(i)) for i in [0, n), in order and on every rank; made by one of them.
template <class Make, class Use>
void in_order(int64_t n, Make make, Use use) {
  for (int64_t first = 0; first < n; first += ranks()) {
    decltype(make(first)) mine{};
    if (first + rank() < n) mine = make(first + rank());
    for (int r = 0; r < ranks() && first + r < n; ++r) {
      decltype(make(first)) other{};
      auto& made = r == rank() ? mine : other;
      share(made, r);
      use(first + r, made);
    }
  }
}

}  // namespace bcq
