// The wall clock of a process, moved by as many seconds as a file says while it runs; preloaded (LD_PRELOAD).
// The monotonic clock stays as it is, as when a machine's time is set. (libfaketime moves both, or breaks sleeping.)
#include <cstdint>
#include <cstdlib>
#include <ctime>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

static int64_t offset() {
    static volatile int64_t *shared = [] {
        static int64_t none = 0;
        const char *path = getenv("SPARSEFLEET_TEST_CLOCK");
        int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
        void *at = file < 0 ? MAP_FAILED : mmap(nullptr, sizeof none, PROT_READ, MAP_SHARED, file, 0);
        if (file >= 0) close(file);
        return static_cast<volatile int64_t *>(at == MAP_FAILED ? &none : at);
    }();
    return *shared;
}

extern "C" int clock_gettime(clockid_t clock, timespec *now) {
    int failed = static_cast<int>(syscall(SYS_clock_gettime, clock, now));
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += offset();
    return failed;
}

extern "C" int gettimeofday(timeval *now, void *) {
    timespec precise;
    clock_gettime(CLOCK_REALTIME, &precise);
    now->tv_sec = precise.tv_sec;
    now->tv_usec = precise.tv_nsec / 1000;
    return 0;
}

extern "C" time_t time(time_t *out) {
    timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}
