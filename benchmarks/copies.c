// Counts the bytes that a process copies in memory: loaded before libc (LD_PRELOAD), by benchmarks/client.py.
//
// Only copies of 4 KiB or more count, so that the photograph is what is counted. What the kernel copies when it sends
// and receives is the same for every client, and is not in it.

#define _GNU_SOURCE
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

static unsigned long long copied;

unsigned long long copied_bytes(void) { return __atomic_load_n(&copied, __ATOMIC_RELAXED); }

static void *copy(void *to, const void *from, size_t bytes) {
    if (bytes >= 4096) __atomic_fetch_add(&copied, bytes, __ATOMIC_RELAXED);
    unsigned char *t = to;
    const unsigned char *f = from;
    if (t <= f || t >= f + bytes)
        __asm__ volatile("rep movsb" : "+D"(t), "+S"(f), "+c"(bytes) : : "memory");
    else
        while (bytes--) t[bytes] = f[bytes];
    return to;
}

void *memcpy(void *to, const void *from, size_t bytes) { return copy(to, from, bytes); }
void *memmove(void *to, const void *from, size_t bytes) { return copy(to, from, bytes); }
void *mempcpy(void *to, const void *from, size_t bytes) { return (char *)copy(to, from, bytes) + bytes; }
void *__memcpy_chk(void *to, const void *from, size_t bytes, size_t room) { (void)room; return copy(to, from, bytes); }
void *__memmove_chk(void *to, const void *from, size_t bytes, size_t room) { (void)room; return copy(to, from, bytes); }

// For a program that does not ask: the sum goes to the file that COPIES names.
__attribute__((destructor)) static void report(void) {
    const char *path = getenv("COPIES");
    FILE *file = path ? fopen(path, "w") : NULL;
    if (file) {
        fprintf(file, "%llu\n", copied_bytes());
        fclose(file);
    }
}
