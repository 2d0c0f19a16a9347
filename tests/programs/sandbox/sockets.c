/* Attempts to reach another process or machine. The first argument is a TCP port of 127.0.0.1, or a path. */
#include "attack.h"
#include <linux/netlink.h>
#include <linux/vm_sockets.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/un.h>

#define TCP_ULP_OPTION 31
#define MPTCP 262
#define SCTP 132

ATTEMPT(tcp) { return socket(AF_INET, SOCK_STREAM, 0); }
ATTEMPT(tcp6) { return socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, IPPROTO_TCP); }
ATTEMPT(udp) { return socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0); }
ATTEMPT(udp6) { return socket(AF_INET6, SOCK_DGRAM, 0); }
ATTEMPT(ping) { return socket(AF_INET, SOCK_DGRAM, IPPROTO_ICMP); }
ATTEMPT(raw) { return socket(AF_INET, SOCK_RAW, IPPROTO_ICMP); }
ATTEMPT(mptcp) { return socket(AF_INET, SOCK_STREAM, MPTCP); }
ATTEMPT(sctp) { return socket(AF_INET, SOCK_STREAM, SCTP); }
ATTEMPT(sctp_packets) { return socket(AF_INET, SOCK_SEQPACKET, SCTP); }
ATTEMPT(smc) { return socket(43, SOCK_STREAM, 0); }
ATTEMPT(netlink) { return socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE); }
ATTEMPT(netlink_events) { return socket(AF_NETLINK, SOCK_RAW, NETLINK_KOBJECT_UEVENT); }
ATTEMPT(packets) { return socket(AF_PACKET, SOCK_DGRAM, 0); }
ATTEMPT(vsock) { return socket(AF_VSOCK, SOCK_STREAM, 0); }
ATTEMPT(crypto) { return socket(AF_ALG, SOCK_SEQPACKET, 0); }
/* The kernel uses the low 32 bits of the family only. */
ATTEMPT(tcp_high_bits) { return syscall(SYS_socket, AF_INET | 1UL << 32, SOCK_STREAM, 0); }

static struct sockaddr_in local(int port)
{
    return (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
}

static long connected(int fd)
{
    struct sockaddr_in to = local(number(0));
    return fd < 0 ? -1 : connect(fd, (void *)&to, sizeof to);
}
ATTEMPT(tcp_connect) { return connected(socket(AF_INET, SOCK_STREAM, 0)); }
ATTEMPT(mptcp_connect) { return connected(socket(AF_INET, SOCK_STREAM, MPTCP)); }
ATTEMPT(udp_send)
{
    struct sockaddr_in to = local(number(0));
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    return fd < 0 ? -1 : sendto(fd, "x", 1, 0, (void *)&to, sizeof to);
}
ATTEMPT(tcp_connect_later)
{
    int fd = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    return setsockopt(fd, IPPROTO_TCP, TCP_FASTOPEN_CONNECT, &on, sizeof on) ? -1 : connected(fd);
}
ATTEMPT(fast_open_sendto)
{
    struct sockaddr_in to = local(number(0));
    return sendto(socket(AF_INET, SOCK_STREAM, 0), "x", 1, MSG_FASTOPEN, (void *)&to, sizeof to);
}
static struct iovec one = {"x", 1};
ATTEMPT(fast_open_sendmsg)
{
    struct sockaddr_in to = local(number(0));
    struct msghdr message = {.msg_name = &to, .msg_namelen = sizeof to, .msg_iov = &one, .msg_iovlen = 1};
    return sendmsg(socket(AF_INET, SOCK_STREAM, 0), &message, MSG_FASTOPEN);
}
ATTEMPT(fast_open_sendmmsg)
{
    struct sockaddr_in to = local(number(0));
    struct mmsghdr message = {.msg_hdr = {.msg_name = &to, .msg_namelen = sizeof to, .msg_iov = &one, .msg_iovlen = 1}};
    return sendmmsg(socket(AF_INET, SOCK_STREAM, 0), &message, 1, MSG_FASTOPEN);
}
ATTEMPT(tcp_bind)
{
    struct sockaddr_in to = local(number(0));
    return bind(socket(AF_INET, SOCK_STREAM, 0), (void *)&to, sizeof to);
}
ATTEMPT(listen_without_bind) { return listen(socket(AF_INET, SOCK_STREAM, 0), 1); }
ATTEMPT(other_protocol)
{
    return setsockopt(socket(AF_INET, SOCK_STREAM, 0), IPPROTO_TCP, TCP_ULP_OPTION, "tls", 3) < 0 && errno == EPERM ? -1 : 0;
}

ATTEMPT(unix_socket) { return socket(AF_UNIX, SOCK_STREAM, 0); }
static struct sockaddr_un at(const char *path, int is_abstract)
{
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    strncpy(to.sun_path + is_abstract, path, sizeof to.sun_path - 2);
    return to;
}
ATTEMPT(unix_connect)
{
    struct sockaddr_un to = at(args[0], 0);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    return fd < 0 ? -1 : connect(fd, (void *)&to, sizeof to);
}
ATTEMPT(abstract_connect)
{
    struct sockaddr_un to = at(args[0], 1);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    return fd < 0 ? -1 : connect(fd, (void *)&to, sizeof(sa_family_t) + 1 + strlen(args[0]));
}
static long through_pair(int type)
{
    int fds[2];
    struct sockaddr_un to = at(args[0] ? args[0] : "/nothing", 0);
    if (socketpair(AF_UNIX, type, 0, fds))
        return -1;
    return sendto(fds[0], "x", 1, 0, (void *)&to, sizeof to) < 0 && errno != ENOENT ? -1 : 0;
}
ATTEMPT(pair_datagram) { return through_pair(SOCK_DGRAM); }
/* The kernel makes a datagram socket of this. */
ATTEMPT(pair_raw) { return through_pair(SOCK_RAW | SOCK_CLOEXEC); }

ATTEMPT(self_pair)
{
    int fds[2];
    char byte;
    return socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) || write(fds[0], "x", 1) != 1 || read(fds[1], &byte, 1) != 1 ? -1 : 0;
}
ATTEMPT(self_pair_packets)
{
    int fds[2];
    return socketpair(AF_UNIX, SOCK_SEQPACKET, 0, fds);
}
/* The own server at the path in the first argument. */
ATTEMPT(self_unix)
{
    struct sockaddr_un to = at(args[0], 0);
    int server = socket(AF_UNIX, SOCK_STREAM, 0);
    if (bind(server, (void *)&to, sizeof to) || listen(server, 1))
        return -1;
    return connect(socket(AF_UNIX, SOCK_STREAM, 0), (void *)&to, sizeof to);
}
/* The own server on the port in the first argument. */
ATTEMPT(self_tcp)
{
    struct sockaddr_in to = local(number(0));
    socklen_t length = sizeof to;
    int server = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    setsockopt(server, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(server, (void *)&to, sizeof to) || listen(server, 1) || getsockname(server, (void *)&to, &length))
        return -1;
    return connect(socket(AF_INET, SOCK_STREAM, 0), (void *)&to, sizeof to);
}

MAIN(NAMED(tcp), NAMED(tcp6), NAMED(udp), NAMED(udp6), NAMED(ping), NAMED(raw), NAMED(mptcp), NAMED(sctp),
     NAMED(sctp_packets), NAMED(smc), NAMED(netlink), NAMED(netlink_events), NAMED(packets), NAMED(vsock), NAMED(crypto),
     NAMED(tcp_high_bits), NAMED(tcp_connect), NAMED(tcp_connect_later), NAMED(mptcp_connect), NAMED(udp_send), NAMED(fast_open_sendto),
     NAMED(fast_open_sendmsg), NAMED(fast_open_sendmmsg), NAMED(tcp_bind), NAMED(listen_without_bind),
     NAMED(other_protocol), NAMED(unix_socket), NAMED(unix_connect), NAMED(abstract_connect), NAMED(pair_datagram),
     NAMED(pair_raw), NAMED(self_pair), NAMED(self_pair_packets), NAMED(self_unix), NAMED(self_tcp))
