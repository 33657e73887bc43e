using System.Runtime.InteropServices;

namespace BlockServer.Io;

#pragma warning disable CS0649 // The kernel reads and writes these.

/// <summary>The few calls into the C library and the kernel that this room needs, Linux on x86-64 and arm64.</summary>
internal static unsafe partial class Native
{
    public const int EPERM = 1, ENOENT = 2, ESRCH = 3, EINTR = 4, EAGAIN = 11, EACCES = 13, EBUSY = 16, EEXIST = 17, EINVAL = 22, ENFILE = 23, EMFILE = 24,
        ENOSPC = 28, EPIPE = 32, ENOSYS = 38, ETIME = 62, EPROTO = 71, EOPNOTSUPP = 95, EADDRINUSE = 98, ENOBUFS = 105,
        ECONNABORTED = 103, ECONNREFUSED = 111, ECANCELED = 125, EDQUOT = 122, ENOTTY = 25, ENOMEM = 12;

    public const int O_RDONLY = 0, O_RDWR = 2, O_CREAT = 0x40, O_EXCL = 0x80, O_NONBLOCK = 0x800, O_CLOEXEC = 0x80000;
    public const int SEEK_END = 2, LOCK_EX = 2, LOCK_NB = 4, F_GETFL = 3, F_SETFL = 4;
    public const int AF_UNIX = 1, AF_INET = 2, AF_INET6 = 10, SOCK_STREAM = 1, SOCK_CLOEXEC = 0x80000, SOCK_NONBLOCK = 0x800;
    public const int SOL_SOCKET = 1, SO_REUSEADDR = 2, SO_ACCEPTCONN = 30, IPPROTO_TCP = 6, TCP_NODELAY = 1, IPPROTO_IPV6 = 41, IPV6_V6ONLY = 26;
    public const int SHUT_WR = 1, SHUT_RDWR = 2, MSG_DONTWAIT = 0x40, MSG_NOSIGNAL = 0x4000;
    public const int FALLOC_KEEP_SIZE = 1, FALLOC_PUNCH_HOLE = 2;
    public const nuint BLKGETSIZE64 = 0x80081272, BLKDISCARD = 0x1277;
    public const int EFD_CLOEXEC = 0x80000, EFD_NONBLOCK = 0x800;
    public const int EPOLL_CTL_ADD = 1, EPOLL_CTL_DEL = 2;
    public const uint EPOLLIN = 1, EPOLLOUT = 4, EPOLLERR = 8, EPOLLHUP = 16, EPOLLRDHUP = 0x2000, EPOLLET = 1u << 31;

    public static readonly bool IsArm = RuntimeInformation.ProcessArchitecture == Architecture.Arm64;
    public static readonly int O_DIRECT = IsArm ? 0x10000 : 0x4000;

    /// <summary>The errno of the last failed call, negative.</summary>
    public static int Errno => -Marshal.GetLastPInvokeError();

    public static string Text(int errno) => Marshal.GetPInvokeErrorMessage(Math.Abs(errno));

    /// <summary>The kernel's number of the calling thread.</summary>
    public static int ThreadId => (int)syscall(IsArm ? 178 : 186, 0, 0, 0, 0, 0, 0);

    /// <summary>The nice value of a thread of this process; 20 when it has ended.</summary>
    public static int NiceOf(int thread) => 20 - Math.Max(0, (int)syscall(IsArm ? 141 : 140, 0, thread, 0, 0, 0, 0));

    /// <summary>Gives a thread of this process a nice value; why that is refused, or null, also when it has ended.</summary>
    public static string? SetNice(int thread, int nice) =>
        syscall(IsArm ? 140 : 141, 0, thread, nice, 0, 0, 0) == 0 || Errno == -ESRCH ? null : $"setpriority: {Text(Errno)}";

    [LibraryImport("libc", SetLastError = true)]
    public static partial nint syscall(nint number, nint a, nint b, nint c, nint d, nint e, nint f);

    [LibraryImport("libc", SetLastError = true)]
    public static partial nint mmap(nint address, nuint length, int protection, int flags, int fd, nint offset);

    [LibraryImport("libc", SetLastError = true)]
    public static partial int munmap(nint address, nuint length);

    [LibraryImport("libc", SetLastError = true, StringMarshalling = StringMarshalling.Utf8)]
    public static partial int open(string path, int flags, int mode);

    [LibraryImport("libc", SetLastError = true)]
    public static partial int close(int fd);

    [LibraryImport("libc", SetLastError = true)]
    public static partial long lseek(int fd, long offset, int whence);

    [LibraryImport("libc", SetLastError = true)]
    public static partial int flock(int fd, int operation);

    [LibraryImport("libc", SetLastError = true)]
    public static partial int fcntl(int fd, int command, nint argument);

    [LibraryImport("libc", SetLastError = true)]
    public static partial int ioctl(int fd, nuint request, ulong* argument);

    [LibraryImport("libc", SetLastError = true)]
    public static partial int fallocate(int fd, int mode, long offset, long length);

    [LibraryImport("libc", SetLastError = true)]
    public static partial int fsync(int fd);

    [LibraryImport("libc", SetLastError = true)]
    public static partial nint read(int fd, void* target, nuint length);

    [LibraryImport("libc", SetLastError = true)]
    public static partial nint write(int fd, void* source, nuint length);

    [LibraryImport("libc", SetLastError = true)]
    public static partial nint pread(int fd, void* target, nuint length, long offset);

    [LibraryImport("libc", SetLastError = true)]
    public static partial nint pwrite(int fd, void* source, nuint length, long offset);

    [LibraryImport("libc", SetLastError = true)]
    public static partial int fstatfs(int fd, long* result);

    [LibraryImport("libc", SetLastError = true)]
    public static partial int eventfd(uint initial, int flags);

    [LibraryImport("libc", SetLastError = true)]
    public static partial int socket(int family, int type, int protocol);

    [LibraryImport("libc", SetLastError = true)]
    public static partial int bind(int fd, byte* address, int length);

    [LibraryImport("libc", SetLastError = true)]
    public static partial int connect(int fd, byte* address, int length);

    [LibraryImport("libc", SetLastError = true)]
    public static partial int listen(int fd, int backlog);

    [LibraryImport("libc", SetLastError = true)]
    public static partial int accept4(int fd, byte* address, int* length, int flags);

    [LibraryImport("libc", SetLastError = true)]
    public static partial int shutdown(int fd, int how);

    [LibraryImport("libc", SetLastError = true)]
    public static partial int getsockopt(int fd, int level, int name, void* value, int* length);

    [LibraryImport("libc", SetLastError = true)]
    public static partial int setsockopt(int fd, int level, int name, int* value, int length);

    [LibraryImport("libc", SetLastError = true)]
    public static partial int getsockname(int fd, byte* address, int* length);

    [LibraryImport("libc", SetLastError = true)]
    public static partial int getpeername(int fd, byte* address, int* length);

    [LibraryImport("libc", SetLastError = true)]
    public static partial nint recv(int fd, void* target, nuint length, int flags);

    [LibraryImport("libc", SetLastError = true)]
    public static partial nint sendmsg(int fd, MessageHeader* message, int flags);

    [LibraryImport("libc", SetLastError = true)]
    public static partial int socketpair(int domain, int type, int protocol, int* ends);

    [LibraryImport("libc", SetLastError = true)]
    public static partial int dup3(int from, int to, int flags);

    [LibraryImport("libc", SetLastError = true)]
    public static partial nint recvmsg(int fd, MessageHeader* message, int flags);

    [LibraryImport("libc", SetLastError = true)]
    public static partial int epoll_create1(int flags);

    [LibraryImport("libc", SetLastError = true)]
    public static partial int epoll_ctl(int epoll, int operation, int fd, byte* ev);

    [LibraryImport("libc", SetLastError = true)]
    public static partial int epoll_wait(int epoll, byte* events, int max, int timeoutMillis);

    [LibraryImport("libc", SetLastError = true, StringMarshalling = StringMarshalling.Utf8)]
    public static partial int statx(int directory, string path, int flags, uint mask, byte* result);

    /// <summary>struct iovec.</summary>
    public struct IoVector
    {
        public nint Base;
        public nuint Length;
    }

    /// <summary>struct msghdr.</summary>
    public struct MessageHeader
    {
        public nint Name;
        public uint NameLength;
        public nint Vectors;
        public nuint VectorCount;
        public nint Control;
        public nuint ControlLength;
        public int Flags;
    }

    /// <summary>struct __kernel_timespec.</summary>
    public struct TimeSpec
    {
        public long Seconds;
        public long Nanos;
    }
}
