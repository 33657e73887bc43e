using System.Net.Sockets;
using System.Runtime.InteropServices;
using System.Security.Cryptography;
using Microsoft.Win32.SafeHandles;

namespace BlockServer.Pfcli;

/// <summary>
/// A file that was handed over to the daemon of this machine, so that it reads or writes the file itself and nothing goes through a
/// connection (docs/api.md). The request names <see cref="Text"/>. Disposing takes it back, if no request has taken it.
/// </summary>
public sealed class HandedTicket : IDisposable
{
    private const int Bytes = 16;
    private readonly Socket _socket;

    private HandedTicket(Socket socket, string text) => (_socket, Text) = (socket, text);

    /// <summary>What a request calls the file.</summary>
    public string Text { get; }

    /// <summary>Hands a file over at the socket <paramref name="path"/>; null when nobody takes it there.</summary>
    public static HandedTicket? TryHand(string path, SafeFileHandle file)
    {
        if (!OperatingSystem.IsLinux() || !File.Exists(path)) return null;
        var socket = new Socket(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified) { ReceiveTimeout = 5000 };
        try
        {
            socket.Connect(new UnixDomainSocketEndPoint(path));
            byte[] ticket = RandomNumberGenerator.GetBytes(Bytes);
            var answer = new byte[1];
            if (Send(socket, ticket, file) && socket.Receive(answer) == 1 && answer[0] == 1) return new HandedTicket(socket, Convert.ToHexStringLower(ticket));
        }
        catch (Exception e) when (e is SocketException or ArgumentException)
        {
            // It goes through the admin API.
        }

        socket.Dispose();
        return null;
    }

    /// <inheritdoc/>
    public void Dispose() => _socket.Dispose();

    /// <summary>Sends the ticket and the file's descriptor with it (SCM_RIGHTS).</summary>
    private static bool Send(Socket socket, byte[] ticket, SafeFileHandle file)
    {
        const int SolSocket = 1, ScmRights = 1, NoSignal = 0x4000, HeadBytes = 16, ControlBytes = HeadBytes + sizeof(int);
        nint memory = Marshal.AllocHGlobal(Bytes + 32);
        bool isHeld = false;
        file.DangerousAddRef(ref isHeld);
        try
        {
            nint control = memory + Bytes;
            Marshal.Copy(ticket, 0, memory, Bytes);
            Marshal.WriteIntPtr(control, ControlBytes);
            Marshal.WriteInt32(control, 8, SolSocket);
            Marshal.WriteInt32(control, 12, ScmRights);
            Marshal.WriteInt32(control, HeadBytes, (int)file.DangerousGetHandle());
            var vector = new IoVector { Base = memory, Length = Bytes };
            GCHandle pinned = GCHandle.Alloc(vector, GCHandleType.Pinned);
            try
            {
                var message = new MessageHeader { Vectors = pinned.AddrOfPinnedObject(), VectorCount = 1, Control = control, ControlLength = ControlBytes };
                return sendmsg(socket.SafeHandle, ref message, NoSignal) == Bytes;
            }
            finally
            {
                pinned.Free();
            }
        }
        finally
        {
            file.DangerousRelease();
            Marshal.FreeHGlobal(memory);
        }
    }

    [DllImport("libc", SetLastError = true)]
    [DefaultDllImportSearchPaths(DllImportSearchPath.SafeDirectories)]
    private static extern nint sendmsg(SafeSocketHandle socket, ref MessageHeader message, int flags);

    [StructLayout(LayoutKind.Sequential)]
    private struct IoVector
    {
        public nint Base;
        public nint Length;
    }

    [StructLayout(LayoutKind.Sequential)]
    private struct MessageHeader
    {
        public nint Name;
        public uint NameLength;
        public nint Vectors;
        public nuint VectorCount;
        public nint Control;
        public nuint ControlLength;
        public int Flags;
    }
}
