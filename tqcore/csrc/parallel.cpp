#include "parallel.h"

#include <algorithm>
#include <cstdlib>

#if defined(__linux__)
#include <sched.h>
#endif

namespace tq {

int default_threads() {
    if (const char* wanted = std::getenv("TQ_THREADS")) {
        const int n = std::atoi(wanted);
        if (n > 0) return n;
    }
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
#endif
    return std::max(1, (int)std::thread::hardware_concurrency());
}

}  // namespace tq
