// Open-addressing map from non-negative 64-bit keys to 64-bit values.
#pragma once
#include <cstdint>
#include <vector>

namespace tq {

class Int64Map {
public:
    static constexpr int64_t kMissing = -1;

    int64_t get(int64_t key) const {
        if (slots_.empty() || key < 0) return kMissing;
        const Slot& s = slots_[find(key)];
        return s.key == key ? s.value : kMissing;
    }

    void set(int64_t key, int64_t value) {
        reserve(size_ + 1);
        Slot& s = slots_[find(key)];
        size_ += s.key == kMissing;
        s = {key, value};
    }

    bool erase(int64_t key) {
        if (slots_.empty() || key < 0) return false;
        size_t hole = find(key);
        if (slots_[hole].key != key) return false;
        const size_t mask = slots_.size() - 1;
        for (size_t i = (hole + 1) & mask; slots_[i].key != kMissing; i = (i + 1) & mask) {
            const size_t home = place(slots_[i].key);
            if (((i - home) & mask) < ((i - hole) & mask)) continue;
            slots_[hole] = slots_[i];
            hole = i;
        }
        slots_[hole] = {kMissing, kMissing};
        --size_;
        return true;
    }

    void reserve(size_t n) {
        if (n * 4 <= slots_.size() * 3) return;
        size_t capacity = 16;
        while (capacity * 3 < n * 4) capacity *= 2;
        std::vector<Slot> old(capacity, {kMissing, kMissing});
        old.swap(slots_);
        for (const Slot& s : old)
            if (s.key != kMissing) slots_[find(s.key)] = s;
    }

    size_t size() const { return size_; }
    size_t bytes() const { return slots_.capacity() * sizeof(Slot); }

private:
    struct Slot { int64_t key, value; };

    size_t place(int64_t key) const {
        uint64_t h = (uint64_t)key * 0x9E3779B97F4A7C15ull;
        h ^= h >> 32;
        return (size_t)h & (slots_.size() - 1);
    }

    size_t find(int64_t key) const {
        const size_t mask = slots_.size() - 1;
        size_t i = place(key);
        while (slots_[i].key != kMissing && slots_[i].key != key) i = (i + 1) & mask;
        return i;
    }

    std::vector<Slot> slots_;
    size_t size_ = 0;
};

}  // namespace tq
