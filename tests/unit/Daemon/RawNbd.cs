using System.Buffers.Binary;
using System.Net;
using System.Net.Sockets;
using System.Text;
using BlockServer.Core;
using BlockServer.Protocols.Nbd;

namespace BlockServer.Tests.Unit.Daemon;

/// <summary>A client that does one request at a time, by simple replies. Blocks.</summary>
internal sealed class RawNbd : IDisposable
{
    private readonly Socket _socket;

    /// <summary>Attaches an export at a unix socket.</summary>
    public RawNbd(string path, string export)
        : this(new UnixDomainSocketEndPoint(path), export)
    {
    }

    /// <summary>Attaches an export.</summary>
    public RawNbd(EndPoint address, string export)
        : this(address)
    {
        byte[] name = Encoding.UTF8.GetBytes(export);
        var wish = new byte[4 + name.Length + 2];
        BinaryPrimitives.WriteUInt32BigEndian(wish, (uint)name.Length);
        name.CopyTo(wish.AsSpan(4));
        Ask(NbdOption.Go, wish);
        Refusal = Replies().Last() is var (type, text) && type != NbdReply.Ack ? Encoding.UTF8.GetString(text) : null;
    }

    private RawNbd(EndPoint address)
    {
        _socket = new Socket(address.AddressFamily, SocketType.Stream, ProtocolType.Unspecified);
        _socket.Connect(address);
        Receive(18);
        _socket.Send([0, 0, 0, 3]); // fixed newstyle, no zeroes
    }

    /// <summary>Why the export was refused; null when it is attached.</summary>
    public string? Refusal { get; }

    /// <summary>The names that LIST shows there.</summary>
    public static IReadOnlyList<string> List(EndPoint address)
    {
        using var client = new RawNbd(address);
        client.Ask(NbdOption.List, []);
        return [.. client.Replies().Where(r => r.Type == NbdReply.Server).Select(
            r => Encoding.UTF8.GetString(r.Data, 4, (int)BinaryPrimitives.ReadUInt32BigEndian(r.Data)))];
    }

    /// <summary>True when the server closes the connection; waits up to 10 s.</summary>
    public bool Ends()
    {
        _socket.ReceiveTimeout = 10_000;
        try
        {
            return _socket.Receive(new byte[1]) == 0;
        }
        catch (SocketException e)
        {
            return e.SocketErrorCode is not (SocketError.TimedOut or SocketError.WouldBlock);
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

    private void Ask(NbdOption option, byte[] data)
    {
        var head = new byte[16];
        "IHAVEOPT"u8.CopyTo(head);
        BinaryPrimitives.WriteUInt32BigEndian(head.AsSpan(8), (uint)option);
        BinaryPrimitives.WriteUInt32BigEndian(head.AsSpan(12), (uint)data.Length);
        _socket.Send([.. head, .. data]);
    }

    // Up to the acknowledgement or an error.
    private List<(NbdReply Type, byte[] Data)> Replies()
    {
        var replies = new List<(NbdReply Type, byte[] Data)>();
        do
        {
            byte[] head = Receive(20);
            var type = (NbdReply)BinaryPrimitives.ReadUInt32BigEndian(head.AsSpan(12));
            replies.Add((type, Receive((int)BinaryPrimitives.ReadUInt32BigEndian(head.AsSpan(16)))));
        }
        while (replies[^1].Type is not NbdReply.Ack and < (NbdReply)0x80000000);
        return replies;
    }

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
