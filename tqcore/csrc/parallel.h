// Threads for one call: started when there is enough work, joined before it returns.
#pragma once
#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace tq {

int default_threads();   // TQ_THREADS, or the processors this process may run on

// Calls f(task) for task in [0, n_tasks) from at most `threads` threads; rethrows the first exception.
template <class F>
void parallel_for(int64_t n_tasks, int threads, F&& f) {
    if (threads > n_tasks) threads = (int)n_tasks;
    if (threads <= 1) {
        for (int64_t t = 0; t < n_tasks; ++t) f(t);
        return;
    }
    std::atomic<int64_t> next{0};
    std::exception_ptr error;
    std::mutex guard;
    auto work = [&] {
        try {
            for (int64_t t; (t = next.fetch_add(1)) < n_tasks;) f(t);
        } catch (...) {
            std::lock_guard<std::mutex> lock(guard);
            if (!error) error = std::current_exception();
            next = n_tasks;
        }
    };
    std::vector<std::thread> pool;
    for (int i = 1; i < threads; ++i) pool.emplace_back(work);
    work();
    for (auto& t : pool) t.join();
    if (error) std::rethrow_exception(error);
}

}  // namespace tq
