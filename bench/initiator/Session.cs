using System.Buffers.Binary;
using System.Net.Sockets;
using System.Text;
using BlockServer.Core;
using BlockServer.Protocols.Iscsi;
using BlockServer.Protocols.Iscsi.Scsi;

namespace BlockServer.Bench.Initiator;

/// <summary>
/// One session with one connection, as an initiator sees it: login, PDUs out in one send for all that is ready, PDUs in from
/// one large receive. Verifies digests. One thread; throws <see cref="InvalidDataException"/> on what it does not expect.
/// </summary>
internal sealed class Session : IDisposable
{
    private const int SegmentBytes = 256 << 10, BufferBytes = 1 << 20;

    private readonly Socket _socket = new(SocketType.Stream, ProtocolType.Tcp) { NoDelay = true };
    private readonly string _target;
    private readonly int _lun;
    private readonly bool _wantsDigests;
    private readonly byte[] _in = GC.AllocateArray<byte>(BufferBytes, pinned: true);
    private byte[] _out = GC.AllocateArray<byte>(BufferBytes, pinned: true);
    private int _start, _end, _outEnd;
    private uint _cmdSn = 1, _maxCmdSn = 1, _expStatSn;

    public Session(string host, int port, string target, int lun, bool wantsDigests)
    {
        (_target, _lun, _wantsDigests) = (target, lun, wantsDigests);
        _socket.Connect(host, port);
    }

    /// <summary>Header and data digests are in force.</summary>
    public bool HasDigests { get; private set; }

    /// <summary>Immediate data may have this many bytes.</summary>
    public int FirstBurst { get; private set; } = 65536;

    /// <summary>A data segment to the target may have this many bytes.</summary>
    public int SegmentMax { get; private set; } = 8192;

    /// <summary>Another command fits the target's window.</summary>
    public bool HasWindow => (int)(_maxCmdSn - _cmdSn) >= 0;

    private ulong LunField => _lun < 256 ? (ulong)_lun << 48 : throw new InvalidDataException("LUNs to 255 only");

    /// <summary>Logs in and waits until the unit is ready; its size in bytes.</summary>
    public ulong Open()
    {
        LogIn();
        for (int attempt = 0; attempt < 8; attempt++)
        {
            Command(0, false, 0, [0, 0, 0, 0, 0, 0], default);
            if (WaitForStatus(out _) == ScsiStatus.Good) break;
        }

        Command(0, true, 32, [0x9E, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0], default);
        if (WaitForStatus(out byte[] data) != ScsiStatus.Good || data.Length < 12) throw new InvalidDataException("READ CAPACITY failed");
        uint block = BinaryPrimitives.ReadUInt32BigEndian(data.AsSpan(8));
        if (block != 512) throw new InvalidDataException($"blocks of {block} bytes");
        return (BinaryPrimitives.ReadUInt64BigEndian(data) + 1) * block;
    }

    /// <summary>Lays a command, with as much immediate data as goes, behind what waits to be sent.</summary>
    public void Command(uint tag, bool isRead, int bytes, ReadOnlySpan<byte> cdb, ReadOnlySpan<byte> data)
    {
        int now = Math.Min(data.Length, Math.Min(FirstBurst, SegmentMax));
        new ScsiCommandPdu(
            false, true, isRead, !data.IsEmpty, TaskAttribute.Simple, LunField, tag, (uint)(isRead ? bytes : data.Length), _cmdSn++, _expStatSn)
            .WriteTo(Header(), cdb, now);
        EndPdu(data[..now]);
    }

    /// <summary>Lays the Data-Out that an R2T asked for.</summary>
    public void DataOut(in R2TPdu r2t, ReadOnlySpan<byte> data)
    {
        uint sn = 0;
        for (int at = 0; at < (int)r2t.LengthBytes;)
        {
            int piece = Math.Min(SegmentMax, (int)r2t.LengthBytes - at);
            uint offset = r2t.Offset + (uint)at;
            bool isLast = at + piece == (int)r2t.LengthBytes;
            new DataOutPdu(isLast, LunField, r2t.Tag, r2t.TransferTag, _expStatSn, sn++, offset).WriteTo(Header(), piece);
            EndPdu(data.Slice((int)offset, piece));
            at += piece;
        }
    }

    /// <summary>Sends what was laid.</summary>
    public void Flush()
    {
        for (int at = 0; at < _outEnd;) at += _socket.Send(_out, at, _outEnd - at, SocketFlags.None);
        _outEnd = 0;
    }

    /// <summary>The next PDU that was received whole; receives when there is none and <paramref name="mayWait"/>. The data is
    /// good until the next call. Pings are answered.</summary>
    public bool Next(bool mayWait, out IscsiHeader header, out ReadOnlySpan<byte> bhs, out ReadOnlySpan<byte> data)
    {
        while (true)
        {
            while (!TryTake(out header, out bhs, out data))
            {
                if (!mayWait) return false;
                Receive();
            }

            if (header.Opcode != IscsiOpcode.NopIn)
            {
                Note(header, bhs);
                return true;
            }

            NopInPdu ping = NopInPdu.Read(bhs);
            if (ping.TransferTag == IscsiWire.NoTag) continue;
            new NopOutPdu(true, ping.Lun, IscsiWire.NoTag, ping.TransferTag, _cmdSn, _expStatSn).WriteTo(Header(), 0);
            EndPdu(default);
            Flush();
        }
    }

    public void Dispose() => _socket.Dispose();

    private void LogIn()
    {
        string digest = _wantsDigests ? "CRC32C" : "None";
        string[] keys =
        [
            "InitiatorName=iqn.2026-11.org.blockserver:bench", "TargetName=" + _target, "SessionType=Normal", $"HeaderDigest={digest}",
            $"DataDigest={digest}", $"MaxRecvDataSegmentLength={SegmentBytes}", "InitialR2T=Yes", "ImmediateData=Yes",
            $"FirstBurstLength={SegmentBytes}", "MaxBurstLength=1048576", "MaxConnections=1", "MaxOutstandingR2T=1", "DefaultTime2Wait=2",
            "DefaultTime2Retain=0", "DataPDUInOrder=Yes", "DataSequenceInOrder=Yes", "ErrorRecoveryLevel=0",
        ];
        byte[] text = Encoding.UTF8.GetBytes(string.Concat(keys.Select(k => k + "\0")));
        ushort isid = (ushort)Environment.ProcessId;
        for (int round = 0; round < 8; round++)
        {
            var login = new LoginRequestPdu(
                true, false, IscsiStage.Operational, IscsiStage.FullFeature, 0, 0x8000_0000_0000ul | isid, 0, 7, 1, _cmdSn, _expStatSn);
            login.WriteTo(Header(), text.Length);
            EndPdu(text);
            Flush();
            Next(true, out _, out ReadOnlySpan<byte> bhs, out ReadOnlySpan<byte> data);
            LoginResponsePdu answer = LoginResponsePdu.Read(bhs);
            if (answer.Status != IscsiLoginStatus.Success) throw new InvalidDataException($"login refused: {answer.Status}");
            TakeKeys(Encoding.UTF8.GetString(data));
            text = [];
            if (!answer.IsTransit) continue;
            if (_wantsDigests != _isAgreed) throw new InvalidDataException("the target takes no digests");
            HasDigests = _isAgreed;
            return;
        }

        throw new InvalidDataException("the login does not end");
    }

    private bool _isAgreed;

    private void TakeKeys(string text)
    {
        foreach (string pair in text.Split('\0', StringSplitOptions.RemoveEmptyEntries))
        {
            string value = pair[(pair.IndexOf('=', StringComparison.Ordinal) + 1)..];
            if (pair.StartsWith("DataDigest=", StringComparison.Ordinal)) _isAgreed = value == "CRC32C";
            if (pair.StartsWith("FirstBurstLength=", StringComparison.Ordinal)) FirstBurst = int.Parse(value, null);
            if (pair.StartsWith("MaxRecvDataSegmentLength=", StringComparison.Ordinal)) SegmentMax = Math.Min(SegmentBytes, int.Parse(value, null));
        }
    }

    private ScsiStatus WaitForStatus(out byte[] dataIn)
    {
        Flush();
        dataIn = [];
        while (true)
        {
            Next(true, out IscsiHeader header, out ReadOnlySpan<byte> bhs, out ReadOnlySpan<byte> data);
            if (header.Opcode == IscsiOpcode.ScsiResponse) return ScsiResponsePdu.Read(bhs).Status;
            DataInPdu piece = DataInPdu.Read(bhs);
            dataIn = data.ToArray();
            if (piece.HasStatus) return piece.Status;
        }
    }

    private Span<byte> Header() => _out.AsSpan(_outEnd, IscsiWire.BhsSize);

    private void EndPdu(ReadOnlySpan<byte> data)
    {
        int header = _outEnd;
        _outEnd += IscsiWire.BhsSize;
        if (_outEnd + data.Length + 64 + IscsiWire.BhsSize > _out.Length) Array.Resize(ref _out, 2 * _out.Length);
        if (HasDigests) PutDigest(_out.AsSpan(header, IscsiWire.BhsSize));
        if (data.IsEmpty) return;
        data.CopyTo(_out.AsSpan(_outEnd));
        int padded = data.Length + IscsiWire.PadOf(data.Length);
        _out.AsSpan(_outEnd + data.Length, padded - data.Length).Clear();
        _outEnd += padded;
        if (HasDigests) PutDigest(_out.AsSpan(_outEnd - padded, padded));
    }

    private void PutDigest(ReadOnlySpan<byte> covered)
    {
        BinaryPrimitives.WriteUInt32LittleEndian(_out.AsSpan(_outEnd), Crc32C.Compute(covered));
        _outEnd += IscsiWire.DigestSize;
    }

    private bool TryTake(out IscsiHeader header, out ReadOnlySpan<byte> bhs, out ReadOnlySpan<byte> data)
    {
        header = default;
        bhs = data = default;
        if (_end - _start < IscsiWire.BhsSize) return false;
        header = IscsiHeader.Read(_in.AsSpan(_start));
        int head = IscsiWire.BhsSize + header.AhsBytes + (HasDigests ? IscsiWire.DigestSize : 0);
        int tail = header.DataBytes == 0 ? 0 : header.PaddedDataBytes + (HasDigests ? IscsiWire.DigestSize : 0);
        if (_end - _start < head + tail) return false;
        bhs = _in.AsSpan(_start, IscsiWire.BhsSize);
        data = _in.AsSpan(_start + head, header.DataBytes);
        if (HasDigests) Verify(head, header);
        _start += head + tail;
        return true;
    }

    private void Verify(int head, in IscsiHeader header)
    {
        Span<byte> pdu = _in.AsSpan(_start);
        int covered = head - IscsiWire.DigestSize, padded = header.PaddedDataBytes;
        bool isGood = Crc32C.Compute(pdu[..covered]) == BinaryPrimitives.ReadUInt32LittleEndian(pdu[covered..]);
        isGood &= padded == 0 || Crc32C.Compute(pdu.Slice(head, padded)) == BinaryPrimitives.ReadUInt32LittleEndian(pdu[(head + padded)..]);
        if (!isGood) throw new InvalidDataException("a digest does not match");
    }

    private void Receive()
    {
        if (_start > 0) _in.AsSpan(_start, _end - _start).CopyTo(_in);
        (_start, _end) = (0, _end - _start);
        int count = _socket.Receive(_in, _end, _in.Length - _end, SocketFlags.None);
        if (count == 0) throw new IOException("the target closed the connection");
        _end += count;
    }

    private void Note(in IscsiHeader header, ReadOnlySpan<byte> bhs)
    {
        IscsiNumbers numbers = IscsiNumbers.Read(bhs);
        if ((int)(numbers.MaxCmdSn - _maxCmdSn) > 0) _maxCmdSn = numbers.MaxCmdSn;
        bool hasStatus = header.Opcode is IscsiOpcode.ScsiResponse or IscsiOpcode.LoginResponse
            || (header.Opcode == IscsiOpcode.DataIn && (header.Flags & 1) != 0);
        if (hasStatus) _expStatSn = numbers.StatSn + 1;
    }
}
