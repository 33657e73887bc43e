using System.Buffers.Binary;
using System.Diagnostics;
using BlockServer.Protocols.Iscsi;
using BlockServer.Protocols.Iscsi.Scsi;

namespace BlockServer.Bench.Initiator;

/// <summary>
/// Keeps a number of reads or writes under way and takes the time of each. Small ones go to random places of the lower half
/// of the volume, large ones (more than 4 KiB) in order through the upper half.
/// </summary>
internal sealed class Load
{
    private const int MicrosMax = 1_000_000;

    private readonly Session _session;
    private readonly bool _isWrite;
    private readonly int _block, _depth;
    private readonly ulong _places;
    private readonly Random _random;
    private readonly byte[] _data;
    private readonly byte[] _cdb = new byte[16];
    private readonly long[] _began;
    private readonly Stack<uint> _free = new();
    private readonly int[] _histogram = new int[MicrosMax + 1];
    private ulong _next;

    public Load(Session session, ulong volumeBytes, bool isWrite, int block, int depth, int seed)
    {
        (_session, _isWrite, _block, _depth) = (session, isWrite, block, depth);
        _places = volumeBytes / 2 / (uint)block;
        _random = new Random(seed);
        _data = new byte[isWrite ? block : 0];
        _random.NextBytes(_data);
        _began = new long[depth];
        for (uint tag = 0; tag < depth; tag++) _free.Push(tag);
    }

    /// <summary>Requests of the last run.</summary>
    public long Count { get; private set; }

    /// <summary>How long it took.</summary>
    public double Seconds { get; private set; }

    /// <summary>Runs for so long, and until the last request is answered.</summary>
    public void Run(double seconds)
    {
        Array.Clear(_histogram);
        Count = 0;
        long start = Stopwatch.GetTimestamp(), end = start + (long)(seconds * Stopwatch.Frequency), now = start;
        while (now < end || _free.Count < _depth)
        {
            while (now < end && _session.HasWindow && _free.TryPop(out uint tag)) Ask(tag, now);
            _session.Flush();
            bool mayWait = true;
            while (_session.Next(mayWait, out IscsiHeader header, out ReadOnlySpan<byte> bhs, out _))
            {
                if (mayWait) now = Stopwatch.GetTimestamp();
                mayWait = false;
                Take(header, bhs, now);
            }
        }

        Seconds = Stopwatch.GetElapsedTime(start).TotalSeconds;
    }

    /// <summary>Latency in microseconds, from the request's laying to the status's taking.</summary>
    public int Percentile(double share)
    {
        long left = (long)(Count * share);
        for (int micros = 0; micros < _histogram.Length; micros++)
        {
            left -= _histogram[micros];
            if (left < 0) return micros;
        }

        return MicrosMax;
    }

    private void Ask(uint tag, long now)
    {
        ulong place = _block > 4096 ? _places + _next++ % _places : (ulong)_random.NextInt64((long)_places);
        _cdb[0] = _isWrite ? (byte)0x8A : (byte)0x88;
        BinaryPrimitives.WriteUInt64BigEndian(_cdb.AsSpan(2), place * (uint)(_block / 512));
        BinaryPrimitives.WriteUInt32BigEndian(_cdb.AsSpan(10), (uint)(_block / 512));
        _began[tag] = now;
        _session.Command(tag, !_isWrite, _block, _cdb, _data);
    }

    private void Take(in IscsiHeader header, ReadOnlySpan<byte> bhs, long now)
    {
        if (header.Opcode == IscsiOpcode.R2T)
        {
            _session.DataOut(R2TPdu.Read(bhs), _data);
            return;
        }

        ScsiStatus status;
        if (header.Opcode == IscsiOpcode.DataIn)
        {
            DataInPdu piece = DataInPdu.Read(bhs);
            if (!piece.HasStatus) return;
            status = piece.Status;
        }
        else if (header.Opcode == IscsiOpcode.ScsiResponse)
        {
            status = ScsiResponsePdu.Read(bhs).Status;
        }
        else
        {
            throw new InvalidDataException($"the target sent {header.Opcode}");
        }

        if (status != ScsiStatus.Good) throw new InvalidDataException($"a request ended with {status}");
        uint tag = header.InitiatorTaskTag;
        long micros = (now - _began[tag]) * 1_000_000 / Stopwatch.Frequency;
        _histogram[Math.Min(micros, MicrosMax)]++;
        Count++;
        _free.Push(tag);
    }
}
