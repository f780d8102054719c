/**
 * A line over time, by uPlot. Colours come from the style sheet, so that it is light or dark with the page.
 */
import { useEffect, useRef } from 'react';
import uPlot from 'uplot';
import 'uplot/dist/uPlot.min.css';

export interface ChartProps {
  /** What it shows, in words: a picture says nothing to a screen reader. */
  label: string;
  at: readonly number[];
  values: readonly (number | null)[];
  colour: string;
  bars?: boolean;
  format?(value: number): string;
}

const plain = (value: number) => String(value);

export const Chart = ({ label, at, values, colour, bars = false, format = plain }: ChartProps) => {
  const place = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot | null>(null);
  const data = useRef<uPlot.AlignedData>([[], []]);
  data.current = [at as number[], values as number[]];

  useEffect(() => {
    const node = place.current!;
    const dark = matchMedia('(prefers-color-scheme: dark)');
    const draw = () => {
      plot.current?.destroy();
      const style = getComputedStyle(node);
      const colourOf = (name: string) => style.getPropertyValue(name).trim();
      const axis = { stroke: colourOf('--dim'), font: '11px system-ui, sans-serif', ticks: { show: false }, grid: { stroke: colourOf('--line-soft'), width: 1 } };
      plot.current = new uPlot({
        width: node.clientWidth || 300,
        height: node.clientHeight || 110,
        legend: { show: false },
        cursor: { show: false },
        padding: [6, 6, 0, 0],
        scales: { y: { range: (_, min, max) => [Math.min(0, min), Math.max(1, max * 1.1)] } },
        axes: [
          { ...axis, size: 22, space: 70, values: (_, ticks) => ticks.map((tick) => new Date(tick * 1000).toLocaleTimeString('en-GB', bars ? { hour: '2-digit', minute: '2-digit' } : {})) },
          { ...axis, size: 42, space: 26, values: (_, ticks) => ticks.map(format) },
        ],
        series: [{}, {
          stroke: colourOf(colour), width: 2, fill: `${colourOf(colour)}26`, points: { show: false }, spanGaps: false,
          ...(bars && { paths: uPlot.paths.bars!({ size: [0.7, 40] }), fill: colourOf(colour), width: 0 }),
        }],
      }, data.current, node);
    };
    const sizes = new ResizeObserver(() => node.clientWidth && plot.current?.setSize({ width: node.clientWidth, height: node.clientHeight }));
    draw();
    sizes.observe(node);
    dark.addEventListener('change', draw);
    return () => {
      sizes.disconnect();
      dark.removeEventListener('change', draw);
      plot.current?.destroy();
      plot.current = null;
    };
  }, [bars, colour, format]);

  useEffect(() => plot.current?.setData(data.current), [at, values]);

  return <div ref={place} className="chart" role="img" aria-label={label} data-points={at.length} />;
};
