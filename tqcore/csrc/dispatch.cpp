// Chooses the SIMD level once, from the machine and the TQ_SIMD environment variable.
#include <cstdlib>
#include <cstring>
#include <string>

#include "kernels.h"

#if defined(__linux__) && defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace tq {
namespace {

struct Level { const Kernels* table; bool runs; };

#if defined(TQ_HAVE_NEON)
bool has_dot_product() {
#if defined(__linux__)
    return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#else
    return true;  // every arm64 Mac has it
#endif
}
#endif

const Level* levels(int* n) {
    static const Level all[] = {
#if defined(TQ_HAVE_AVX512)
        {&avx512::table, __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                             __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vbmi2") &&
                             __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("fma") &&
                             __builtin_cpu_supports("f16c") && __builtin_cpu_supports("bmi2")},
#endif
#if defined(TQ_HAVE_AVX2)
        {&avx2::table, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                           __builtin_cpu_supports("f16c") && __builtin_cpu_supports("bmi2")},
#endif
#if defined(TQ_HAVE_NEON)
        {&neon::table, has_dot_product()},
#endif
        {&scalar::table, true},
    };
    *n = sizeof(all) / sizeof(all[0]);
    return all;
}

const Kernels* active = nullptr;
std::string reason;

const Kernels* find(const char* name) {
    int n;
    const Level* all = levels(&n);
    for (int i = 0; i < n; ++i)
        if (all[i].runs && !std::strcmp(all[i].table->name, name)) return all[i].table;
    return nullptr;
}

void choose() {
    const char* wanted = std::getenv("TQ_SIMD");
    if (wanted && *wanted) {
        if (const Kernels* k = find(wanted)) {
            active = k;
            reason = "TQ_SIMD=" + std::string(wanted);
            return;
        }
        reason = "widest level of this machine; TQ_SIMD=" + std::string(wanted) + " is not available here";
    } else {
        reason = "widest level of this machine";
    }
    int n;
    const Level* all = levels(&n);
    for (int i = 0; i < n && !active; ++i)
        if (all[i].runs) active = all[i].table;
}

}  // namespace

const Kernels* kernels() {
    static const bool once = (choose(), true);
    (void)once;
    return active;
}

const char* simd_reason() {
    kernels();
    return reason.c_str();
}

int set_simd(const char* name) {
    kernels();
    const Kernels* k = find(name);
    if (!k) return 0;
    active = k;
    reason = "chosen by the program";
    return 1;
}

}  // namespace tq
