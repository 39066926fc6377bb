// The rows that can still enter the top k, given bounds on their scores.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace tq {

struct Candidate {
    float upper, lower;
    int64_t row;
};

// Puts at least `keep` of the candidates first, those of the largest upper bounds, and returns how many. By buckets of
// their range where these tell enough of them apart: comparisons would be guessed wrong half of the time.
inline size_t best_first(std::vector<Candidate>& all, size_t keep) {
    constexpr int kBuckets = 256;
    if (all.size() <= keep) return all.size();
    float low = INFINITY, high = -INFINITY;
    for (const Candidate& c : all) {
        low = std::min(low, c.upper);
        high = std::max(high, c.upper);
    }
    // In double, where neither the range of the least numbers is too small to divide by nor that of the largest infinite.
    const double range = (double)high - (double)low;
    if (range > 0 && range < INFINITY) {
        const auto bucket = [low, scale = (kBuckets - 1) / range](const Candidate& c) {
            return (int)(((double)c.upper - (double)low) * scale);
        };
        uint32_t count[kBuckets] = {};
        for (const Candidate& c : all) ++count[bucket(c)];
        int cut = kBuckets;
        size_t above = 0;
        while (above < keep) above += count[--cut];
        if (above <= keep + keep / 4) {
            size_t n = 0;
            for (size_t i = 0; i < all.size(); ++i) {
                const Candidate c = all[i];
                all[i] = all[n];
                all[n] = c;
                n += bucket(c) >= cut;
            }
            return n;
        }
    }
    std::nth_element(all.begin(), all.begin() + (ptrdiff_t)keep, all.end(),
                     [](const Candidate& a, const Candidate& b) { return a.upper > b.upper; });
    return keep;
}

// Keeps every candidate whose upper bound reaches the k-th largest lower bound seen. A small k is followed with every
// candidate; a larger one is found out every `slack` candidates or so.
class Reservoir {
public:
    explicit Reservoir(int64_t k) : Reservoir(k, std::max<int64_t>(k, 48 - k)) {}
    Reservoir(int64_t k, int64_t slack)
        : k_((size_t)k), slack_((size_t)slack), limit_(k_ + slack_), followed_(k_ <= kFollowed) {
        if (!followed_) return;
        lower_.assign(2 * (k_ + 1), -INFINITY);
        lower_[0] = lower_[k_ + 1] = INFINITY;
    }

    float threshold() const { return threshold_; }
    // Begins at a threshold that k lower bounds will likely reach, so near the last one that it is not followed up but
    // found out anew once there are `limit` candidates. What is kept is complete if the guess proves to be right.
    void guess(float threshold, int64_t limit) {
        threshold_ = guess_ = threshold;
        followed_ = false;
        limit_ = (size_t)limit;
        kept_.reserve(limit_);
    }
    bool proven() const {
        const auto reaches = [g = guess_](const Candidate& c) { return c.lower >= g; };
        return (size_t)std::count_if(kept_.begin(), kept_.end(), reaches) >= k_;
    }
    std::vector<Candidate>& candidates() { return kept_; }

    void add(const Candidate& c) {
        kept_.push_back(c);
        if (followed_ && c.lower > threshold_) follow(c.lower);
        if (kept_.size() >= limit_) prune();
    }

    __attribute__((noinline)) void prune() {
        if (kept_.size() < k_) return;
        if (!followed_) raise();
        const float t = threshold_;
        kept_.erase(std::remove_if(kept_.begin(), kept_.end(), [t](const Candidate& c) { return c.upper < t; }),
                    kept_.end());
        if (kept_.size() + slack_ / 4 > limit_) limit_ = kept_.size() + std::max(slack_, kept_.size() / 2);
    }

private:
    static constexpr size_t kFollowed = 256;

    // The k largest lower bounds lie in order behind an infinite one, in the first or the second half: each is moved
    // on to the other half without a branch.
    void follow(float lower) {
        const float* from = lower_.data() + (second_ ? k_ + 1 : 0);
        float* __restrict to = lower_.data() + (second_ ? 0 : k_ + 1);
        for (size_t i = 1; i <= k_; ++i) to[i] = std::max(from[i], std::min(from[i - 1], lower));
        second_ = !second_;
        threshold_ = std::max(threshold_, to[k_]);
    }

    void raise() {
        lower_.resize(kept_.size());
        for (size_t i = 0; i < kept_.size(); ++i) lower_[i] = kept_[i].lower;
        std::nth_element(lower_.begin(), lower_.begin() + (ptrdiff_t)(k_ - 1), lower_.end(), std::greater<float>());
        threshold_ = std::max(threshold_, lower_[k_ - 1]);
    }

    size_t k_, slack_, limit_;
    bool followed_, second_ = false;
    float threshold_ = -INFINITY, guess_ = -INFINITY;
    std::vector<Candidate> kept_;
    std::vector<float> lower_;
};

}  // namespace tq
