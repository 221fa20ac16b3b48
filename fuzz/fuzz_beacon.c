/* A packet of discovery, and what is remembered of it: hosts and times come from the first bytes.
 */
#include <stdlib.h>
#include <string.h>

#include "fuzz.h"
#include "net/beacon.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static mxd_beacons all;
    static int64_t now = 1;
    mxd_beacon b, again;
    uint8_t packet[MXD_BEACON_BYTES];
    if (mxd_beacon_get(&b, data, size)) {
        if (b.port < 1 || b.port > 65535 || strlen(b.name) >= sizeof b.name) abort();
        size_t n = mxd_beacon_put(packet, &b);
        if (!mxd_beacon_get(&again, packet, n) || memcmp(&b, &again, sizeof b) != 0) abort();
    }
    if (size > 16) memcpy(all.tag, data + 8, sizeof all.tag);
    now += size ? data[0] : 1;
    mxd_beacons_add(&all, data, size, size > 8 ? (uint32_t)(data[7] << 8 | data[8]) : 0, now);
    if (all.n < 0 || all.n > MXD_BEACON_MAX_PEERS) abort();
    return 0;
}
