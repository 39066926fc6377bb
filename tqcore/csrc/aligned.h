// Memory that starts at a cache line, so that loads and stores of whole registers cross none.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>

namespace tq {

// Room for n values, which are not set.
template <class T>
class Aligned {
public:
    Aligned() = default;
    explicit Aligned(size_t n)
        : held_(new uint8_t[n * sizeof(T) + 63]), at_((T*)(((uintptr_t)held_.get() + 63) & ~(uintptr_t)63)) {}
    T* get() const { return at_; }

private:
    std::unique_ptr<uint8_t[]> held_;
    T* at_ = nullptr;
};

}  // namespace tq
