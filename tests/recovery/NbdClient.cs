using System.Buffers.Binary;
using System.Net.Sockets;
using System.Text;

namespace BlockServer.Tests.Recovery;

/// <summary>
/// The least NBD client that a verifier needs, written from the protocol and not from the server: fixed newstyle, GO,
/// simple replies, several requests under way. Lives on one thread. A lost connection throws <see cref="IOException"/>.
/// </summary>
internal sealed class NbdClient : IDiskClient
{
    private const ushort Read = 0, Fua = 1, NoHole = 2;
    private readonly Socket _socket;
    private readonly NetworkStream _stream;

    public NbdClient(Socket connected, string volume)
    {
        _socket = connected;
        _stream = new NetworkStream(connected);
        byte[] hello = Take(18);
        Expect(BinaryPrimitives.ReadUInt64BigEndian(hello) == 0x4e42444d41474943, "magic");
        Expect(BinaryPrimitives.ReadUInt64BigEndian(hello.AsSpan(8)) == 0x49484156454F5054, "option magic");
        byte[] name = Encoding.UTF8.GetBytes(volume);
        byte[] go = new byte[4 + 16 + 4 + name.Length + 2];
        BinaryPrimitives.WriteUInt32BigEndian(go, 3);
        BinaryPrimitives.WriteUInt64BigEndian(go.AsSpan(4), 0x49484156454F5054);
        BinaryPrimitives.WriteUInt32BigEndian(go.AsSpan(12), 7);
        BinaryPrimitives.WriteUInt32BigEndian(go.AsSpan(16), (uint)(4 + name.Length + 2));
        BinaryPrimitives.WriteUInt32BigEndian(go.AsSpan(20), (uint)name.Length);
        name.CopyTo(go, 24);
        _stream.Write(go);
        while (true)
        {
            byte[] header = Take(20);
            Expect(BinaryPrimitives.ReadUInt64BigEndian(header) == 0x3e889045565a9, "option reply magic");
            uint type = BinaryPrimitives.ReadUInt32BigEndian(header.AsSpan(12));
            byte[] data = Take((int)BinaryPrimitives.ReadUInt32BigEndian(header.AsSpan(16)));
            if (type == 1)
            {
                break;
            }

            Expect(type == 3, $"GO was answered with {type:x}");
            if (BinaryPrimitives.ReadUInt16BigEndian(data) == 0)
            {
                Size = BinaryPrimitives.ReadInt64BigEndian(data.AsSpan(2));
                Flags = BinaryPrimitives.ReadUInt16BigEndian(data.AsSpan(10));
            }
        }
    }

    /// <summary>The volume's size in bytes.</summary>
    public long Size { get; }

    /// <summary>The transmission flags.</summary>
    public ushort Flags { get; }

    /// <inheritdoc/>
    public void Send(DiskCommand command, bool isFua, bool noHole, ulong cookie, long offset, int length, ReadOnlySpan<byte> data)
    {
        ushort code = command switch { DiskCommand.Write => 1, DiskCommand.Flush => 3, DiskCommand.Trim => 4, _ => 6 };
        Send(code, (ushort)((isFua ? Fua : 0) | (noHole ? NoHole : 0)), cookie, offset, length, data);
    }

    private void Send(ushort command, ushort flags, ulong cookie, long offset, int length, ReadOnlySpan<byte> data = default)
    {
        byte[] message = new byte[28 + data.Length];
        BinaryPrimitives.WriteUInt32BigEndian(message, 0x25609513);
        BinaryPrimitives.WriteUInt16BigEndian(message.AsSpan(4), flags);
        BinaryPrimitives.WriteUInt16BigEndian(message.AsSpan(6), command);
        BinaryPrimitives.WriteUInt64BigEndian(message.AsSpan(8), cookie);
        BinaryPrimitives.WriteInt64BigEndian(message.AsSpan(16), offset);
        BinaryPrimitives.WriteInt32BigEndian(message.AsSpan(24), length);
        data.CopyTo(message.AsSpan(28));
        _stream.Write(message);
    }

    /// <inheritdoc/>
    public (ulong Cookie, uint Error) Receive()
    {
        byte[] reply = Take(16);
        Expect(BinaryPrimitives.ReadUInt32BigEndian(reply) == 0x67446698, "simple reply magic");
        return (BinaryPrimitives.ReadUInt64BigEndian(reply.AsSpan(8)), BinaryPrimitives.ReadUInt32BigEndian(reply.AsSpan(4)));
    }

    /// <inheritdoc/>
    public bool TryReadRange(long offset, int length, out byte[] data, out uint error)
    {
        Send(Read, 0, 1, offset, length);
        (_, error) = Receive();
        data = error == 0 ? Take(length) : [];
        return error == 0;
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        _stream.Dispose();
        _socket.Dispose();
    }

    private byte[] Take(int count)
    {
        byte[] buffer = new byte[count];
        _stream.ReadExactly(buffer);
        return buffer;
    }

    private static void Expect(bool good, string what)
    {
        if (!good)
        {
            throw new InvalidDataException("NBD: " + what);
        }
    }
}
