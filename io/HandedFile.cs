using System.Net.Sockets;
using Microsoft.Win32.SafeHandles;

namespace BlockServer.Io;

/// <summary>
/// Files that another process of this machine has opened and hands over by a unix socket (SCM_RIGHTS): whoever takes one may do with it
/// what its opener may, and needs no rights of its own to where it lies.
/// </summary>
public static unsafe class HandedFile
{
    private const int MSG_CMSG_CLOEXEC = 0x40000000, SCM_RIGHTS = 1;

    // One descriptor: the kernel closes what finds no room.
    private const int HeadBytes = 16, ControlBytes = HeadBytes + sizeof(int);

    /// <summary>Reads what has come, without waiting, and the file that came with it, which the caller owns; null: none, or it is no
    /// regular file. How many bytes; 0 at the end or when nothing is there.</summary>
    public static int Receive(Socket socket, Span<byte> bytes, out SafeFileHandle? file)
    {
        file = null;
        byte* control = stackalloc byte[ControlBytes];
        new Span<byte>(control, ControlBytes).Clear();
        nint count;
        nuint length;
        fixed (byte* target = bytes)
        {
            var vector = new Native.IoVector { Base = (nint)target, Length = (nuint)bytes.Length };
            var message = new Native.MessageHeader { Vectors = (nint)(&vector), VectorCount = 1, Control = (nint)control, ControlLength = ControlBytes };
            do count = Native.recvmsg((int)socket.Handle, &message, Native.MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
            while (count < 0 && Native.Errno == -Native.EINTR);
            length = message.ControlLength;
        }

        bool hasFile = count >= 0 && length >= ControlBytes && *(nuint*)control == ControlBytes
            && *(int*)(control + 8) == Native.SOL_SOCKET && *(int*)(control + 12) == SCM_RIGHTS;
        if (hasFile) file = Regular(new SafeFileHandle(*(int*)(control + HeadBytes), ownsHandle: true));
        return (int)Math.Max(0, count);
    }

    /// <summary>Where a file has data from <paramref name="at"/> on: there, when that is not known; null: nowhere.</summary>
    public static ulong? NextData(SafeFileHandle file, ulong at)
    {
        const int SeekData = 3, NoMoreData = 6; // ENXIO
        bool isHeld = false;
        file.DangerousAddRef(ref isHeld);
        try
        {
            long data = Native.lseek((int)file.DangerousGetHandle(), (long)at, SeekData);
            if (data >= 0) return (ulong)data;
            return Native.Errno == -NoMoreData ? null : at;
        }
        finally
        {
            file.DangerousRelease();
        }
    }

    /// <summary>Reads and writes of anything else may wait for ever.</summary>
    private static SafeFileHandle? Regular(SafeFileHandle file)
    {
        const int EmptyPath = 0x1000, ModeAt = 28, TypeMask = 0xF000, RegularType = 0x8000;
        byte* about = stackalloc byte[256];
        bool isRegular = Native.statx((int)file.DangerousGetHandle(), "", EmptyPath, 1, about) == 0 && (*(ushort*)(about + ModeAt) & TypeMask) == RegularType;
        if (isRegular) return file;
        file.Dispose();
        return null;
    }
}
