/* Answers as NVML does, for the GPUs in NVML_GPUS: `NAME|UUID|MAJOR.MINOR|TOTAL_MIB|FREE_MIB`, apart by `;`.
   `lost` in place of one: it has fallen off the bus, and is found out at once. `NAME|lost`: only when it is asked.
   NVML_INIT is what the library returns at its start. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, DRIVER_NOT_LOADED = 9, GPU_IS_LOST = 15 };

struct gpu { char name[96], uuid[80]; int major, minor, lost; unsigned long long total, free; };
struct memory { unsigned long long total, free, used; };

static struct gpu gpus[8];
static unsigned count;

int nvmlInitWithFlags(unsigned flags) {
    const char *init = getenv("NVML_INIT"), *told = getenv("NVML_GPUS");
    (void)flags;
    if (init != NULL && *init) return atoi(init);
    count = 0;
    while (told != NULL && *told && count < 8) {
        struct gpu *g = &gpus[count++];
        memset(g, 0, sizeof *g);
        size_t length = strcspn(told, ";");
        char line[256];
        snprintf(line, sizeof line, "%.*s", (int)length, told);
        if (strcmp(line, "lost") == 0) g->lost = 1;
        else if (sscanf(line, "%95[^|]|%79[^|]|%d.%d|%llu|%llu", g->name, g->uuid, &g->major, &g->minor, &g->total,
                        &g->free) < 6) g->lost = 2;
        told += length + (told[length] == ';');
    }
    return SUCCESS;
}

int nvmlShutdown(void) { return SUCCESS; }

const char *nvmlErrorString(int code) {
    return code == DRIVER_NOT_LOADED ? "Driver Not Loaded" : code == GPU_IS_LOST ? "GPU is lost" : "Unknown Error";
}

int nvmlDeviceGetCount_v2(unsigned *n) { *n = count; return SUCCESS; }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, struct gpu **g) {
    if (index >= count) return INVALID_ARGUMENT;
    *g = &gpus[index];
    return (*g)->lost == 1 ? GPU_IS_LOST : SUCCESS;
}

int nvmlDeviceGetMemoryInfo(struct gpu *g, struct memory *m) {
    if (g->lost) return GPU_IS_LOST;
    m->total = g->total << 20;
    m->free = g->free << 20;
    m->used = m->total - m->free;
    return SUCCESS;
}

int nvmlDeviceGetCudaComputeCapability(struct gpu *g, int *major, int *minor) {
    if (g->lost) return GPU_IS_LOST;
    *major = g->major;
    *minor = g->minor;
    return SUCCESS;
}

int nvmlDeviceGetUUID(struct gpu *g, char *uuid, unsigned length) {
    if (g->lost) return GPU_IS_LOST;
    snprintf(uuid, length, "%s", g->uuid);
    return SUCCESS;
}

int nvmlDeviceGetName(struct gpu *g, char *name, unsigned length) {
    if (g->lost) return GPU_IS_LOST;
    snprintf(name, length, "%s", g->name);
    return SUCCESS;
}
