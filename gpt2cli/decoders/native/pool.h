// A small thread pool, independent of Python's threads.

#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#ifdef __linux__
#include <sched.h>
#endif

#include "platform.h"

namespace {

// Threads that run one function together, with barriers between its steps.
//
// A barrier spins for a while, because sleeping costs as much as a whole layer, and then sleeps,
// because the machine may have other work to do. With more threads than cores it sleeps at once:
// the thread that it waits for may need this core.
class Pool {
  public:
    int threads = 1;

    // If the system cannot start all n threads, those that it started do the work.
    explicit Pool(int n) : cores(n) {
        std::lock_guard<std::mutex> lock(mutex);  // no thread starts before their number is known
        try {
            for (; threads < n; threads++)
                workers.emplace_back([this, i = threads] { work(i); });
        } catch (...) {
        }
        const int available = std::thread::hardware_concurrency();
        if (threads <= available) spin = std::chrono::microseconds(100);
    }

    ~Pool() {
        run(nullptr, nullptr);
        for (std::thread& worker : workers) worker.join();
    }

    using Task = void (*)(void* argument, int thread);

    // Call task(argument, thread) on all threads; null ends them.
    void run(Task new_task, void* new_argument) {
        task = new_task;
        argument = new_argument;
        part_company(0);
        barrier();
        if (!task) return;
        task(argument, 0);
        barrier();
    }

    // Wait until all threads have arrived.
    void barrier() {
        if (threads == 1) return;
        const unsigned before = round.load(std::memory_order_acquire);
        if (arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == threads) {
            arrived.store(0, std::memory_order_relaxed);
            {
                std::lock_guard<std::mutex> lock(mutex);  // no thread is about to sleep
                round.store(before + 1, std::memory_order_release);
            }
            wake.notify_all();
            return;
        }
        const auto passed = [&] { return round.load(std::memory_order_acquire) != before; };
        const auto begin = std::chrono::steady_clock::now();
        while (std::chrono::steady_clock::now() - begin < spin)
            for (int i = 0; i < 32; i++) {
                if (passed()) return;
#ifdef X86
                _mm_pause();
#endif
            }
        std::unique_lock<std::mutex> lock(mutex);
        wake.wait(lock, passed);
    }

  private:
    void work(int thread) {
        { std::lock_guard<std::mutex> lock(mutex); }
        for (;;) {
            barrier();
            if (!task) return;
            part_company(thread);
            task(argument, thread);
            barrier();
        }
    }

    // Move to a core of its own, if the system has woken this thread on that of another: it would
    // leave both there, each waiting for the other to sleep.
    void part_company(int thread) {
#ifdef __linux__
        const int here = sched_getcpu();
        cores[thread].store(here, std::memory_order_relaxed);
        bool shared = false;
        cpu_set_t allowed, others;
        for (int i = 0; i < thread; i++) shared |= cores[i].load(std::memory_order_relaxed) == here;
        if (!shared || here < 0 || sched_getaffinity(0, sizeof allowed, &allowed)) return;
        others = allowed;
        for (int i = 0; i < thread; i++) CPU_CLR(cores[i].load(std::memory_order_relaxed), &others);
        if (!CPU_COUNT(&others) || sched_setaffinity(0, sizeof others, &others)) return;
        sched_setaffinity(0, sizeof allowed, &allowed);
        cores[thread].store(sched_getcpu(), std::memory_order_relaxed);
#else
        (void)thread;
#endif
    }

    std::vector<std::atomic<int>> cores;  // that each thread runs on
    std::chrono::microseconds spin{0};
    Task task = nullptr;
    void* argument = nullptr;
    alignas(64) std::atomic<int> arrived{0};
    alignas(64) std::atomic<unsigned> round{0};
    std::mutex mutex;
    std::condition_variable wake;
    std::vector<std::thread> workers;
};

}  // namespace
