/* The agent of a lab host: what a controller may ask of an emulated machine that has KVM.
 *
 * It listens on a TCP port.  Each connection is one request, served by a process of its own:
 *
 *   request   u32 little-endian length, then NUL-ended words: TOKEN VERB ARGUMENT...
 *   answer    '+', then what the verb says; or '-', u32 length, a text: why not
 *
 *   put PATH SIZE     SIZE bytes follow; after they are in the file the answer comes again
 *   has PATH          '+' if there is such a path
 *   dial PATH         a connection to the UNIX socket PATH, byte for byte
 *   follow PATH       the file's content, also what is still written to it, until one side ends
 *   run DIR WORD...   a program; DIR ("" for none) is made first.  Frames follow: a letter, u32
 *                     length, data.  o standard output, e standard error, x the wait status in
 *                     decimal, the last.  If the controller hangs up, the program is killed: a
 *                     guest never outlives whoever is responsible for it.
 *   feed WORD...      a program with an input.  The controller's frames: i input, z its end; the
 *                     agent's as for run.  If the controller hangs up, the input ends, and the
 *                     program is left alone, as sshd does: it may have a guest in its hands.
 *   shell             a shell on a terminal, byte for byte
 *   clock SECONDS     set the wall clock (a host restored from a snapshot has an old one)
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { REQUEST_LIMIT = 1 << 18, WORDS_LIMIT = 1024, BLOCK = 1 << 16, DIAL_TRIES = 200 };

static _Noreturn void leave(void) { _exit(0); }

static void write_all(int fd, const void *data, size_t size) {
    const char *from = data;
    while (size > 0) {
        ssize_t written = write(fd, from, size);
        if (written < 0 && errno == EINTR) continue;
        if (written <= 0) leave();
        from += written;
        size -= (size_t)written;
    }
}

static void read_all(int fd, void *data, size_t size) {
    char *into = data;
    while (size > 0) {
        ssize_t got = read(fd, into, size);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) leave();
        into += got;
        size -= (size_t)got;
    }
}

static void frame(int connection, char kind, const void *data, size_t size) {
    unsigned char head[5] = {(unsigned char)kind, (unsigned char)size, (unsigned char)(size >> 8),
                             (unsigned char)(size >> 16), (unsigned char)(size >> 24)};
    write_all(connection, head, sizeof head);
    write_all(connection, data, size);
}

static void accept_request(int connection) { write_all(connection, "+", 1); }

static _Noreturn void refuse(int connection, const char *what, const char *why) {
    char text[512];
    int size = snprintf(text, sizeof text, "%s: %s", what, why);
    frame(connection, '-', text, size < (int)sizeof text ? (size_t)size : sizeof text - 1);
    leave();
}

static void make_folders(const char *path) {
    char copy[4096];
    if (snprintf(copy, sizeof copy, "%s", path) >= (int)sizeof copy) return;
    for (char *end = copy + 1; *end; end++) {
        if (*end != '/') continue;
        *end = 0;
        mkdir(copy, 0700);
        *end = '/';
    }
    mkdir(copy, 0700);
}

/* Copy what is there from one descriptor to another; 0 at the end of the first. */
static int pass_on(int from, int to) {
    static char block[BLOCK];
    ssize_t got = read(from, block, sizeof block);
    if (got < 0 && (errno == EINTR || errno == EAGAIN)) return 1;
    if (got <= 0) return 0;
    write_all(to, block, (size_t)got);
    return 1;
}

static _Noreturn void splice_both(int one, int other) {
    struct pollfd ends[2] = {{.fd = one, .events = POLLIN}, {.fd = other, .events = POLLIN}};
    for (;;) {
        if (poll(ends, 2, -1) < 0 && errno != EINTR) leave();
        if (ends[0].revents && !pass_on(one, other)) leave();
        if (ends[1].revents && !pass_on(other, one)) leave();
    }
}

static void put(int connection, const char *path, const char *size_text) {
    char fresh[4096];
    if (snprintf(fresh, sizeof fresh, "%s.new", path) >= (int)sizeof fresh)
        refuse(connection, path, "too long");
    int file = open(fresh, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0700);
    if (file < 0) refuse(connection, fresh, strerror(errno));
    accept_request(connection);
    static char block[BLOCK];
    for (unsigned long long left = strtoull(size_text, NULL, 10); left > 0;) {
        size_t part = left < sizeof block ? (size_t)left : sizeof block;
        read_all(connection, block, part);
        if (write(file, block, part) != (ssize_t)part) refuse(connection, fresh, "no room");
        left -= part;
    }
    close(file);
    if (rename(fresh, path) != 0) refuse(connection, path, strerror(errno));
    accept_request(connection);
}

static void dial(int connection, const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path) refuse(connection, path, "too long");
    strcpy(address.sun_path, path);
    int peer = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int tries = 0;
    /* QEMU makes its socket shortly before it listens. */
    while (connect(peer, (struct sockaddr *)&address, sizeof address) != 0) {
        if (errno != ECONNREFUSED || ++tries > DIAL_TRIES)
            refuse(connection, path, strerror(errno));
        usleep(10000);
    }
    accept_request(connection);
    splice_both(connection, peer);
}

static void follow(int connection, const char *path) {
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) refuse(connection, path, strerror(errno));
    accept_request(connection);
    for (;;) {
        struct pollfd end = {.fd = connection, .events = POLLIN};
        while (pass_on(file, connection)) continue;
        if (poll(&end, 1, 20) > 0) leave();
    }
}

static _Noreturn void become(char **words) {
    signal(SIGPIPE, SIG_DFL);
    execv(words[0], words);
    fprintf(stderr, "%s: %s\n", words[0], strerror(errno));
    _exit(127);
}

static void run(int connection, const char *folder, char **words) {
    int out[2], err[2];
    if (*folder) make_folders(folder);
    if (pipe2(out, O_CLOEXEC) != 0 || pipe2(err, O_CLOEXEC) != 0)
        refuse(connection, words[0], strerror(errno));
    pid_t child = fork();
    if (child < 0) refuse(connection, words[0], strerror(errno));
    if (child == 0) {
        int nothing = open("/dev/null", O_RDONLY);
        setsid();
        dup2(nothing, 0);
        dup2(out[1], 1);
        dup2(err[1], 2);
        become(words);
    }
    close(out[1]);
    close(err[1]);
    accept_request(connection);
    struct pollfd ends[3] = {{.fd = connection, .events = POLLIN},
                             {.fd = out[0], .events = POLLIN},
                             {.fd = err[0], .events = POLLIN}};
    static char block[BLOCK];
    while (ends[1].fd >= 0 || ends[2].fd >= 0) {
        if (poll(ends, 3, -1) < 0 && errno != EINTR) break;
        if (ends[0].revents) {
            /* The controller says nothing here but good-bye. */
            kill(-child, SIGKILL);
            kill(child, SIGKILL);
            waitpid(child, NULL, 0);
            leave();
        }
        for (int n = 1; n < 3; n++) {
            if (ends[n].fd < 0 || !ends[n].revents) continue;
            ssize_t got = read(ends[n].fd, block, sizeof block);
            if (got > 0)
                frame(connection, n == 1 ? 'o' : 'e', block, (size_t)got);
            else
                ends[n].fd = -1;
        }
    }
    int status = 0;
    waitpid(child, &status, 0);
    char text[16];
    int size = snprintf(text, sizeof text, "%d", status);
    frame(connection, 'x', text, (size_t)size);
}

/* Hand one frame of the controller on to a program's input; 0 when there is no more. */
static int hand_on(int connection, int input) {
    unsigned char head[5];
    static char block[BLOCK];
    read_all(connection, head, sizeof head);
    if (head[0] != 'i') return 0;
    uint32_t left;
    memcpy(&left, head + 1, sizeof left);
    while (left > 0) {
        size_t part = left < sizeof block ? left : sizeof block;
        read_all(connection, block, part);
        left -= (uint32_t)part;
        for (size_t done = 0; done < part;) {
            ssize_t written = write(input, block + done, part - done);
            if (written < 0 && errno == EINTR) continue;
            if (written <= 0) return 0;
            done += (size_t)written;
        }
    }
    return 1;
}

static void feed(int connection, char **words) {
    int in[2], out[2], err[2];
    if (pipe2(in, O_CLOEXEC) != 0 || pipe2(out, O_CLOEXEC) != 0 || pipe2(err, O_CLOEXEC) != 0)
        refuse(connection, words[0], strerror(errno));
    pid_t child = fork();
    if (child < 0) refuse(connection, words[0], strerror(errno));
    if (child == 0) {
        setsid();
        dup2(in[0], 0);
        dup2(out[1], 1);
        dup2(err[1], 2);
        become(words);
    }
    close(in[0]);
    close(out[1]);
    close(err[1]);
    accept_request(connection);
    /* Input by a process of its own: while the program does not read, its output still comes. */
    pid_t feeder = fork();
    if (feeder == 0) {
        while (hand_on(connection, in[1])) continue;
        leave();
    }
    close(in[1]);
    struct pollfd ends[2] = {{.fd = out[0], .events = POLLIN}, {.fd = err[0], .events = POLLIN}};
    static char block[BLOCK];
    while (ends[0].fd >= 0 || ends[1].fd >= 0) {
        if (poll(ends, 2, -1) < 0 && errno != EINTR) break;
        for (int n = 0; n < 2; n++) {
            if (ends[n].fd < 0 || !ends[n].revents) continue;
            ssize_t got = read(ends[n].fd, block, sizeof block);
            if (got > 0)
                frame(connection, n == 0 ? 'o' : 'e', block, (size_t)got);
            else
                ends[n].fd = -1;
        }
    }
    int status = 0;
    waitpid(child, &status, 0);
    if (feeder > 0) kill(feeder, SIGKILL);
    char text[16];
    int size = snprintf(text, sizeof text, "%d", status);
    frame(connection, 'x', text, (size_t)size);
}

static void shell(int connection) {
    int terminal;
    char *words[] = {"/bin/sh", "-i", NULL};
    pid_t child = forkpty(&terminal, NULL, NULL, NULL);
    if (child < 0) refuse(connection, words[0], strerror(errno));
    if (child == 0) {
        setenv("PS1", "\\h# ", 1);
        become(words);
    }
    accept_request(connection);
    splice_both(connection, terminal);
}

static void set_clock(int connection, const char *text) {
    double seconds = strtod(text, NULL);
    struct timespec now = {.tv_sec = (time_t)seconds};
    now.tv_nsec = (long)((seconds - (double)now.tv_sec) * 1e9);
    if (clock_settime(CLOCK_REALTIME, &now) != 0) refuse(connection, "clock", strerror(errno));
    accept_request(connection);
}

static void serve(int connection, const char *token) {
    uint32_t size;
    static char request[REQUEST_LIMIT + 1];
    char *words[WORDS_LIMIT + 1];
    int count = 0;
    read_all(connection, &size, sizeof size);
    if (size == 0 || size > REQUEST_LIMIT) leave();
    read_all(connection, request, size);
    for (char *word = request; word < request + size && count < WORDS_LIMIT;
         word += strlen(word) + 1)
        words[count++] = word;
    words[count] = NULL;
    if (count < 2 || strcmp(words[0], token) != 0) refuse(connection, "agent", "not the token");
    const char *verb = words[1];
    if (strcmp(verb, "put") == 0 && count == 4) {
        put(connection, words[2], words[3]);
    } else if (strcmp(verb, "has") == 0 && count == 3) {
        if (access(words[2], F_OK) != 0) refuse(connection, words[2], strerror(errno));
        accept_request(connection);
    } else if (strcmp(verb, "dial") == 0 && count == 3) {
        dial(connection, words[2]);
    } else if (strcmp(verb, "follow") == 0 && count == 3) {
        follow(connection, words[2]);
    } else if (strcmp(verb, "run") == 0 && count >= 4) {
        run(connection, words[2], words + 3);
    } else if (strcmp(verb, "feed") == 0 && count >= 3) {
        feed(connection, words + 2);
    } else if (strcmp(verb, "shell") == 0 && count == 2) {
        shell(connection);
    } else if (strcmp(verb, "clock") == 0 && count == 3) {
        set_clock(connection, words[2]);
    } else {
        refuse(connection, verb, "not a verb of this agent, or the wrong number of arguments");
    }
}

int main(int count, char **arguments) {
    if (count != 3) {
        fprintf(stderr, "usage: agent PORT TOKEN\n");
        return 2;
    }
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons((uint16_t)atoi(arguments[1])),
                                  .sin_addr.s_addr = htonl(INADDR_ANY)};
    int yes = 1;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) != 0 ||
        listen(listener, 64) != 0) {
        perror("agent");
        return 1;
    }
    signal(SIGPIPE, SIG_IGN);
    printf("isthmus: host is up\n");
    fflush(stdout);
    for (;;) {
        int connection = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (connection >= 0) {
            setsockopt(connection, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
            if (fork() == 0) {
                close(listener);
                serve(connection, arguments[2]);
                leave();
            }
            close(connection);
        }
        while (waitpid(-1, NULL, WNOHANG) > 0) continue;
    }
}
