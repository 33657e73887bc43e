using System.Buffers.Binary;
using System.Net.Sockets;
using System.Text;
using BlockServer.Core;
using BlockServer.Protocols.Nbd;

namespace BlockServer.Tests.Unit.Daemon;

/// <summary>A client on a unix socket that does one request at a time, by simple replies. Blocks.</summary>
internal sealed class RawNbd : IDisposable
{
    private readonly Socket _socket = new(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified);

    /// <summary>Attaches an export.</summary>
    public RawNbd(string path, string export)
    {
        _socket.Connect(new UnixDomainSocketEndPoint(path));
        Receive(18);
        byte[] name = Encoding.UTF8.GetBytes(export);
        var go = new byte[4 + 16 + 4 + name.Length + 2];
        BinaryPrimitives.WriteUInt32BigEndian(go, 3); // fixed newstyle, no zeroes
        "IHAVEOPT"u8.CopyTo(go.AsSpan(4));
        BinaryPrimitives.WriteUInt32BigEndian(go.AsSpan(12), (uint)NbdOption.Go);
        BinaryPrimitives.WriteUInt32BigEndian(go.AsSpan(16), (uint)name.Length + 6);
        BinaryPrimitives.WriteUInt32BigEndian(go.AsSpan(20), (uint)name.Length);
        name.CopyTo(go.AsSpan(24));
        _socket.Send(go);
        while (true)
        {
            byte[] head = Receive(20);
            Receive((int)BinaryPrimitives.ReadUInt32BigEndian(head.AsSpan(16)));
            var type = (NbdReply)BinaryPrimitives.ReadUInt32BigEndian(head.AsSpan(12));
            Check.That(type < (NbdReply)0x80000000);
            if (type == NbdReply.Ack) return;
        }
    }

    public void Write(ulong offset, byte[] data)
    {
        _socket.Send(Request(NbdCommand.Write, offset, data.Length));
        _socket.Send(data);
        Answer(0);
    }

    public byte[] Read(ulong offset, int length)
    {
        _socket.Send(Request(NbdCommand.Read, offset, length));
        return Answer(length);
    }

    public void Dispose() => _socket.Dispose();

    private static byte[] Request(NbdCommand command, ulong offset, int length)
    {
        var head = new byte[NbdRequest.SizeIn(NbdReplyMode.Simple)];
        new NbdRequest(command, 0, 1, offset, (ulong)length).WriteTo(head, NbdReplyMode.Simple);
        return head;
    }

    private byte[] Answer(int length)
    {
        byte[] head = Receive(16);
        Check.That(BinaryPrimitives.ReadUInt32BigEndian(head) == NbdWire.SimpleReplyMagic && BinaryPrimitives.ReadUInt32BigEndian(head.AsSpan(4)) == 0);
        return Receive(length);
    }

    private byte[] Receive(int count)
    {
        var bytes = new byte[count];
        for (int have = 0; have < count;)
        {
            int got = _socket.Receive(bytes.AsSpan(have));
            Check.That(got > 0);
            have += got;
        }

        return bytes;
    }
}
