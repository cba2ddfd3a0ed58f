/* Preloaded into Bochs: its screen (RFB) listens on all addresses and asks for no password, and has
 * buttons that end the host.  A socket that is bound to no address in particular is bound to the
 * loopback.
 */
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

int bind(int descriptor, const struct sockaddr *address, socklen_t size) {
    struct sockaddr_in own;
    if (address != NULL && size >= sizeof own && address->sa_family == AF_INET) {
        memcpy(&own, address, sizeof own);
        if (own.sin_addr.s_addr == htonl(INADDR_ANY)) own.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        return (int)syscall(SYS_bind, descriptor, &own, sizeof own);
    }
    return (int)syscall(SYS_bind, descriptor, address, size);
}
