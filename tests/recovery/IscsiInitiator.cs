using System.Buffers.Binary;
using System.Net.Sockets;
using System.Text;
using BlockServer.Core;

namespace BlockServer.Tests.Recovery;

/// <summary>
/// The least iSCSI initiator that a verifier needs, written from RFC 7143 and SBC-3 and not from the server: one session with
/// LUN 0, several commands under way, and one of four ways to move the data of a write, so that all are part of a load. Lives
/// on one thread. A lost connection throws <see cref="IOException"/>.
/// </summary>
internal sealed class IscsiInitiator : IDiskClient
{
    /// <summary>What a refusal because the server goes away is called here, as NBD calls it.</summary>
    private const uint ShuttingDown = 108;

    private const uint NoTag = 0xFFFFFFFF;
    private static int s_sessions;

    private readonly Socket _socket;
    private readonly NetworkStream _stream;
    private readonly bool _hasHeaderDigest, _hasDataDigest, _isImmediate, _waitsForR2T;
    private readonly Dictionary<uint, Under> _underWay = [];
    private readonly int _firstBurst, _segmentMax;
    private uint _cmdSn = 1, _expStatSn, _tag;

    /// <summary>Logs in to <paramref name="target"/>. Way 0: immediate data; 1: all by R2T, with both digests; 2: unsolicited
    /// Data-Out; 3: immediate data, with header digests.</summary>
    public IscsiInitiator(Socket connected, string target, int way)
    {
        _socket = connected;
        _stream = new NetworkStream(connected);
        (bool header, bool data) = (way % 4 is 1 or 3, way % 4 == 1);
        (_isImmediate, _waitsForR2T) = (way % 4 is 0 or 3, way % 4 == 1);
        static string YesNo(bool yes) => yes ? "Yes" : "No";
        string[] keys =
        [
            "InitiatorName=iqn.2026-11.example:verifier", "TargetName=" + target, "SessionType=Normal",
            "HeaderDigest=" + (header ? "CRC32C" : "None"), "DataDigest=" + (data ? "CRC32C" : "None"),
            "InitialR2T=" + YesNo(_waitsForR2T), "ImmediateData=" + YesNo(_isImmediate), "MaxRecvDataSegmentLength=262144",
            "MaxBurstLength=1048576", "FirstBurstLength=65536", "MaxOutstandingR2T=4", "MaxConnections=1", "ErrorRecoveryLevel=0",
        ];
        byte[] login = Header(0x43, 0x87); // operational stage, then full feature phase
        byte[] text = Encoding.ASCII.GetBytes(string.Join('\0', keys) + "\0");
        BinaryPrimitives.WriteUInt32BigEndian(login.AsSpan(8), 0x80000000); // ISID: random, and one for each session
        BinaryPrimitives.WriteUInt16BigEndian(login.AsSpan(12), (ushort)Interlocked.Increment(ref s_sessions));
        BinaryPrimitives.WriteUInt32BigEndian(login.AsSpan(24), _cmdSn);
        Send(login, text);
        (byte[] answer, byte[] said) = Take();
        Expect(answer[0] == 0x23 && answer[36] == 0 && answer[1] == 0x87, $"login was answered with {answer[36]:x2}{answer[37]:x2}, flags {answer[1]:x2}");
        Dictionary<string, string> agreed = Encoding.ASCII.GetString(said).Split('\0', StringSplitOptions.RemoveEmptyEntries)
            .Select(pair => pair.Split('=', 2)).ToDictionary(pair => pair[0], pair => pair[1]);
        _segmentMax = int.Parse(agreed.GetValueOrDefault("MaxRecvDataSegmentLength", "8192"), System.Globalization.CultureInfo.InvariantCulture);
        _firstBurst = int.Parse(agreed["FirstBurstLength"], System.Globalization.CultureInfo.InvariantCulture);
        Expect(agreed["InitialR2T"] == YesNo(_waitsForR2T) && agreed["ImmediateData"] == YesNo(_isImmediate), "it agreed to something else");
        (_hasHeaderDigest, _hasDataDigest) = (header, data);
        for (uint error = 1; error != 0;)
        {
            SendCommand(0, new byte[16], 0, false, default); // TEST UNIT READY until no unit attention is left
            error = Receive().Error;
            Expect(error is 0 or 6, $"TEST UNIT READY failed with {error}");
        }
    }

    /// <inheritdoc/>
    public void Send(DiskCommand command, bool isFua, bool noHole, ulong cookie, long offset, int length, ReadOnlySpan<byte> data)
    {
        byte[] cdb = new byte[16];
        long lba = offset / 512;
        int blocks = length / 512;
        BinaryPrimitives.WriteInt64BigEndian(cdb.AsSpan(2), lba);
        BinaryPrimitives.WriteInt32BigEndian(cdb.AsSpan(10), blocks);
        switch (command)
        {
            case DiskCommand.Write:
                (cdb[0], cdb[1]) = (0x8A, isFua ? (byte)0x08 : (byte)0);
                SendCommand(cookie, cdb, length, false, data);
                break;
            case DiskCommand.WriteZeroes:
                (cdb[0], cdb[1]) = (0x93, noHole ? (byte)0x01 : (byte)0x09); // WRITE SAME (16) with NDOB, and UNMAP
                SendCommand(cookie, cdb, 0, false, default);
                break;
            case DiskCommand.Trim:
                byte[] list = new byte[24];
                (list[1], list[3]) = (22, 16);
                BinaryPrimitives.WriteInt64BigEndian(list.AsSpan(8), lba);
                BinaryPrimitives.WriteInt32BigEndian(list.AsSpan(16), blocks);
                SendCommand(cookie, [0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0, 0, 0, 0, 0, 0, 0], 24, false, list);
                break;
            default:
                SendCommand(cookie, [0x91, .. new byte[15]], 0, false, default); // SYNCHRONIZE CACHE (16) of everything
                break;
        }
    }

    /// <inheritdoc/>
    public (ulong Cookie, uint Error) Receive()
    {
        while (true)
        {
            (byte[] header, byte[] data) = Take();
            uint tag = BinaryPrimitives.ReadUInt32BigEndian(header.AsSpan(16));
            switch (header[0] & 0x3F)
            {
                case 0x20: // NOP-In: a ping wants its answer
                    Answer(header);
                    break;
                case 0x31:
                    Send(tag, _underWay[tag], header);
                    break;
                case 0x25:
                    Under read = _underWay[tag];
                    data.CopyTo(read.Data, BinaryPrimitives.ReadInt32BigEndian(header.AsSpan(40)));
                    read.Got += data.Length;
                    if ((header[1] & 0x01) != 0) return End(tag, header[3], []);
                    break;
                case 0x21:
                    return End(tag, header[3], data);
                case 0x32: // the target says goodbye; the connection ends next
                    break;
                default:
                    throw new InvalidDataException($"iSCSI: a PDU {header[0] & 0x3F:x2} that nobody asked for");
            }
        }
    }

    /// <inheritdoc/>
    public bool TryReadRange(long offset, int length, out byte[] data, out uint error)
    {
        byte[] cdb = new byte[16];
        cdb[0] = 0x88;
        BinaryPrimitives.WriteInt64BigEndian(cdb.AsSpan(2), offset / 512);
        BinaryPrimitives.WriteInt32BigEndian(cdb.AsSpan(10), length / 512);
        Under read = SendCommand(0, cdb, length, true, default);
        (_, error) = Receive();
        Expect(error != 0 || read.Got == length, $"a read of {length} bytes brought {read.Got}");
        data = read.Data;
        return error == 0;
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        _stream.Dispose();
        _socket.Dispose();
    }

    private Under SendCommand(ulong cookie, byte[] cdb, int length, bool isRead, ReadOnlySpan<byte> data)
    {
        var under = new Under(cookie, isRead ? new byte[length] : data.ToArray());
        int first = isRead || _waitsForR2T ? 0 : Math.Min(length, _firstBurst), immediate = _isImmediate ? Math.Min(first, _segmentMax) : 0;
        bool isFinal = first == immediate;
        byte[] command = Header(0x01, (byte)((isFinal ? 0x80 : 0) | (isRead ? 0x40 : length > 0 ? 0x20 : 0) | 0x01));
        uint tag = ++_tag;
        BinaryPrimitives.WriteUInt32BigEndian(command.AsSpan(16), tag);
        BinaryPrimitives.WriteInt32BigEndian(command.AsSpan(20), length);
        BinaryPrimitives.WriteUInt32BigEndian(command.AsSpan(24), _cmdSn++);
        cdb.CopyTo(command, 32);
        _underWay.Add(tag, under);
        Send(command, under.Data.AsSpan(0, immediate));
        if (!isFinal) SendData(tag, NoTag, under.Data, immediate, first);
        return under;
    }

    // An R2T: what it asks for, in PDUs that the target takes.
    private void Send(uint tag, Under under, byte[] r2t)
    {
        int offset = BinaryPrimitives.ReadInt32BigEndian(r2t.AsSpan(40)), length = BinaryPrimitives.ReadInt32BigEndian(r2t.AsSpan(44));
        SendData(tag, BinaryPrimitives.ReadUInt32BigEndian(r2t.AsSpan(20)), under.Data, offset, offset + length);
    }

    private void SendData(uint tag, uint transferTag, byte[] data, int from, int end)
    {
        for (uint number = 0; from < end; number++)
        {
            int length = Math.Min(end - from, _segmentMax);
            byte[] header = Header(0x05, from + length == end ? (byte)0x80 : (byte)0);
            BinaryPrimitives.WriteUInt32BigEndian(header.AsSpan(16), tag);
            BinaryPrimitives.WriteUInt32BigEndian(header.AsSpan(20), transferTag);
            BinaryPrimitives.WriteUInt32BigEndian(header.AsSpan(36), number);
            BinaryPrimitives.WriteInt32BigEndian(header.AsSpan(40), from);
            Send(header, data.AsSpan(from, length));
            from += length;
        }
    }

    // Status BUSY while the server stops; sense keys as they are, other statuses with 256.
    private (ulong Cookie, uint Error) End(uint tag, byte status, byte[] sense)
    {
        _underWay.Remove(tag, out Under? under);
        uint error = status switch { 0 => 0, 8 => ShuttingDown, 2 when sense.Length >= 5 => (uint)(sense[4] & 0x0F), _ => 256u + status };
        return (under!.Cookie, error);
    }

    private void Answer(byte[] ping)
    {
        if (BinaryPrimitives.ReadUInt32BigEndian(ping.AsSpan(20)) == NoTag) return;
        byte[] pong = Header(0x40, 0x80);
        ping.AsSpan(8, 8).CopyTo(pong.AsSpan(8));
        BinaryPrimitives.WriteUInt32BigEndian(pong.AsSpan(16), NoTag);
        ping.AsSpan(20, 4).CopyTo(pong.AsSpan(20));
        BinaryPrimitives.WriteUInt32BigEndian(pong.AsSpan(24), _cmdSn);
        Send(pong, default);
    }

    private byte[] Header(byte opcode, byte flags)
    {
        byte[] header = new byte[48];
        (header[0], header[1]) = (opcode, flags);
        BinaryPrimitives.WriteUInt32BigEndian(header.AsSpan(28), _expStatSn);
        return header;
    }

    private void Send(byte[] header, ReadOnlySpan<byte> data)
    {
        (header[5], header[6], header[7]) = ((byte)(data.Length >> 16), (byte)(data.Length >> 8), (byte)data.Length);
        byte[] padded = new byte[(data.Length + 3) & ~3];
        data.CopyTo(padded);
        _stream.Write([.. header, .. _hasHeaderDigest ? Digest(header) : [], .. padded, .. _hasDataDigest && data.Length > 0 ? Digest(padded) : []]);
    }

    private (byte[] Header, byte[] Data) Take()
    {
        byte[] header = Take(48);
        if (_hasHeaderDigest) Expect(Take(4).AsSpan().SequenceEqual(Digest(header)), "a header digest is wrong");
        int length = (header[5] << 16) | (header[6] << 8) | header[7];
        byte[] padded = Take((length + 3) & ~3);
        if (_hasDataDigest && length > 0) Expect(Take(4).AsSpan().SequenceEqual(Digest(padded)), "a data digest is wrong");

        // Only what carries a status counts: not an R2T, not Data-In without one, not a ping of the target's own.
        bool counts = (header[0] & 0x3F) switch
        {
            0x31 => false,
            0x25 => (header[1] & 0x01) != 0,
            0x20 => BinaryPrimitives.ReadUInt32BigEndian(header.AsSpan(16)) != NoTag,
            _ => true,
        };
        if (counts) _expStatSn = BinaryPrimitives.ReadUInt32BigEndian(header.AsSpan(24)) + 1;
        return (header, padded[..length]);
    }

    private byte[] Take(int count)
    {
        byte[] buffer = new byte[count];
        _stream.ReadExactly(buffer);
        return buffer;
    }

    private static byte[] Digest(byte[] data)
    {
        byte[] digest = new byte[4];
        BinaryPrimitives.WriteUInt32LittleEndian(digest, Crc32C.Compute(data));
        return digest;
    }

    private static void Expect(bool good, string what)
    {
        if (!good) throw new InvalidDataException("iSCSI: " + what);
    }

    private sealed class Under(ulong cookie, byte[] data)
    {
        public ulong Cookie => cookie;

        public byte[] Data => data;

        public int Got { get; set; }
    }
}
